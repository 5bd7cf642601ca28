"""How near fitting comes to the bare training step, and the data to bare decoding (`overfeat benchmark train`)."""

import logging
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import keras
import numpy as np
import tensorflow as tf

from overfeat_tf.cli.benchmarks.extraction import write_photographs
from overfeat_tf.cli.benchmarks.machine import describe, seconds
from overfeat_tf.cli.benchmarks.report import Report
from overfeat_tf.cli.benchmarks.torch_step import timed_steps
from overfeat_tf.images.decode import decode_image
from overfeat_tf.network.convnet import build
from overfeat_tf.network.presets import Preset, get_preset
from training.fit.stages import classification_model
from training.fit.strategy import keep_freed_memory
from training.recipes import Recipe, get_recipe
from training.sources import open_source
from training.sources.record import as_dataset
from training.views.crops import plain_crops
from training.views.drawing import Drawing
from training.views.pipeline import PREFETCHED, record_batches
from training.views.reading import CORES, shuffled_records

PRESET, BATCH, CLASSES = "fast", 32, 1000
IMAGES, AHEAD = 1024, 2560  # decoded in a repetition, and before it: the blocks of batches that are drawn ahead

log = logging.getLogger(__name__)


def measure(repetitions: int, steps: int) -> Report:
    """Measure the training of `fast`; every repetition takes both sides of a ratio in turn.

    Args:
        repetitions: How often.
        steps: Of a batch of 32, on each side.
    """
    keep_freed_memory()  # as `train` does
    report = Report("train", describe())
    recipe, preset = get_recipe(f"imagenet-{PRESET}"), get_preset(PRESET)
    with TemporaryDirectory(prefix="overfeat-benchmark-") as name:
        folder = Path(name)
        (folder / "photograph").mkdir()
        write_photographs(folder / "photograph")
        ours, bare, what = pipeline_of_decode(folder, preset, recipe, repetitions)
        report.add("pipeline_of_decode", ours, f"{what} alone", (">=", 0.9))
        report.add("pipeline_of_decode_jpeg", bare, f"{what} with nothing but TensorFlow's JPEG decoder")
        fitted = _model(preset, recipe)
        report.add("fit_of_step", *fit_of_step(fitted, folder, preset, recipe, repetitions, steps), (">=", 0.95))
    try:
        report.add("of_pytorch", *of_pytorch(fitted, preset, recipe, repetitions, steps), (">=", 1.0))
    except ImportError as error:
        log.warning("of_pytorch left out: %s", error)
    return report


def pipeline_of_decode(
    folder: Path, preset: Preset, recipe: Recipe, repetitions: int
) -> tuple[list[float], list[float], str]:
    """Compare images a second through the classification pipeline with decoding alone, each on all cores.

    On one thread the pipeline would have help: batches are put together in another than images are decoded in.

    Returns:
        Ratios to the rate of `decode_image`, which bounds sizes, turns upright and survives damage; ratios to that of
        `tf.io.decode_jpeg`; what was measured.
    """
    records = as_dataset(open_source(f"folder:{folder}"), "train").cache().repeat()
    batch = recipe.classification.batch
    each = 2 * recipe.views.per_image / batch  # batches of an image's views

    def ours(record: dict) -> tf.Tensor:
        return tf.size(decode_image(record["image_bytes"])[0])

    def bare(record: dict) -> tf.Tensor:
        return tf.size(tf.io.decode_jpeg(record["image_bytes"], 3, dct_method="INTEGER_ACCURATE"))

    batches = _stream(record_batches(records, plain_crops(_drawing(preset, recipe)), batch, 0))
    alone = [_stream(records.map(decode, CORES)) for decode in (ours, bare)]
    to_ours: list[float] = []
    to_bare: list[float] = []
    for number in range(1, repetitions + 1):
        whole, *parts = _timed(batches, each), *(_timed(images, 1) for images in alone)
        for ratios, part in zip((to_ours, to_bare), parts, strict=True):
            ratios.append(part / whole)
        rates = _rates(whole, *parts)
        log.info("pipeline %d of %d: %.0f images/s, %.0f and %.0f decoded alone", number, repetitions, *rates)
    what = f"{IMAGES} JPEGs of 500x375: decode, five crops of `{PRESET}`, flips; all cores; over decoding"
    return to_ours, to_bare, what


def fit_of_step(
    fitted: keras.Model, folder: Path, preset: Preset, recipe: Recipe, repetitions: int, steps: int
) -> tuple[list[float], str]:
    """Compare `fit` from files, decoding as it goes, with the same step on one batch held in memory."""
    source, views = open_source(f"folder:{folder}"), plain_crops(_drawing(preset, recipe))
    batches = record_batches(shuffled_records(source, "train", 0), views, BATCH, 0).prefetch(PREFETCHED)
    turns = Turns(next(iter(batches)), steps, repetitions)
    fitted.fit(
        batches, steps_per_epoch=PREFETCHED + steps, epochs=1 + repetitions, callbacks=[turns], verbose=0, shuffle=False
    )
    return turns.ratios, f"`{PRESET}`, batch {BATCH}, {steps} steps: fit from JPEGs over the step on a batch in memory"


class Turns(keras.callbacks.Callback):
    """Time the last `steps` of each epoch but the first, and after each so many on a batch held in memory.

    The first steps of an epoch find batches that were made ready while memory had its turn.
    """

    def __init__(self, held: tuple[tf.Tensor, tf.Tensor], steps: int, repetitions: int):
        super().__init__()
        self.ratios: list[float] = []
        self._held, self._steps, self._repetitions, self._began = held, steps, repetitions, 0.0

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Start the clock."""
        if batch == PREFETCHED - 1:
            self._began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Stop it, and give memory its turn."""
        files = time.perf_counter() - self._began
        memory = seconds(lambda: [self.model.train_on_batch(*self._held) for _ in range(self._steps)])
        if epoch > 0:
            self.ratios.append(memory / files)
            each = files / self._steps, memory / self._steps
            log.info("fit %d of %d: %.3f s a step, %.3f from memory", epoch, self._repetitions, *each)


def of_pytorch(
    fitted: keras.Model, preset: Preset, recipe: Recipe, repetitions: int, steps: int
) -> tuple[list[float], str]:
    """Compare the step's rate with that of the same network, loss and optimiser in PyTorch, on the CPU.

    Raises:
        ImportError: PyTorch is not there.
    """
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (BATCH, preset.window, preset.window, 3), np.uint8)
    labels = rng.integers(0, CLASSES, BATCH, np.int32)
    held = tf.constant(pixels), tf.constant(labels)
    schedule = recipe.classification
    fitted.train_on_batch(*held)
    ratios = []
    hyper = (schedule.rate, schedule.momentum, schedule.weight_decay)
    with timed_steps(preset, CLASSES, BATCH, *hyper) as theirs:
        theirs(1)
        for number in range(1, repetitions + 1):
            ours = seconds(lambda: [fitted.train_on_batch(*held) for _ in range(steps)])
            other = theirs(steps)
            ratios.append(other / ours)
            log.info("PyTorch %d of %d: %.3f s a step, theirs %.3f", number, repetitions, ours / steps, other / steps)
    return ratios, f"`{PRESET}`, batch {BATCH}, {steps} steps on one batch in memory: the rate over PyTorch's"


def _model(preset: Preset, recipe: Recipe) -> keras.Model:
    return classification_model(build(preset, CLASSES), recipe)


def _drawing(preset: Preset, recipe: Recipe) -> Drawing:
    return Drawing(preset, preset.scales, recipe.matching, recipe.views)


def _stream(data: tf.data.Dataset) -> Iterator:
    options = tf.data.Options()
    options.autotune.enabled = False  # it would draw more and more ahead
    return iter(data.with_options(options))


def _timed(stream: Iterator, each: float) -> float:
    """Time the next `IMAGES` of a stream of so many elements each, past those that it drew while it waited."""
    _take(stream, AHEAD * each)
    return seconds(lambda: _take(stream, IMAGES * each))


def _take(stream: Iterator, count: float) -> None:
    for _ in islice(stream, round(count)):
        pass


def _rates(*times: float) -> list[float]:
    return [IMAGES / each for each in times]
