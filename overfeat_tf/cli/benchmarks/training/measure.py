"""`overfeat benchmark train`: the data pipeline against decoding, `fit` against its step, the step against PyTorch."""

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import keras
import numpy as np
import tensorflow as tf

from overfeat_tf.cli.benchmarks.inputs import write_photographs
from overfeat_tf.cli.benchmarks.machine import describe_machine, time_call
from overfeat_tf.cli.benchmarks.report import Report
from overfeat_tf.cli.benchmarks.training.torch_step import timed_steps
from overfeat_tf.compute.precision import MIXED
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
from training.views.reading import CORES, RecordStream

PRESET, BATCH, CLASSES = "fast", 32, 1000
IMAGES, AHEAD = 1024, 2560  # decoded in a repetition, and before it: the batches that are prefetched

log = logging.getLogger(__name__)


def measure(repetitions: int, steps: int) -> Report:
    """Measure the training of `fast`. Each repetition measures both sides of a ratio in turn.

    Args:
        repetitions: Number of repetitions.
        steps: Training steps on each side, with batches of 32.
    """
    keep_freed_memory()  # as `train` does
    report = Report("train", describe_machine())
    recipe, preset = get_recipe(f"imagenet-{PRESET}"), get_preset(PRESET)
    with TemporaryDirectory(prefix="overfeat-benchmark-") as name:
        folder = Path(name)
        (folder / "photograph").mkdir()
        write_photographs(folder / "photograph")
        ours, tensorflow, what = pipeline_of_decode(folder, preset, recipe, repetitions)
        report.add("pipeline_of_decode", ours, f"{what} alone", (">=", 0.9))
        report.add("pipeline_of_decode_jpeg", tensorflow, f"{what} with nothing but TensorFlow's JPEG decoder")
        report.add("reading_of_decode", *reading_of_decode(folder, repetitions), (">=", 1.0))
        fitted = _model(preset, recipe)
        report.add("fit_of_step", *fit_of_step(fitted, folder, preset, recipe, repetitions, steps), (">=", 0.95))
    reduced = replace(recipe, precision=MIXED)
    fitted_reduced = _model(preset, reduced)
    report.add("bfloat16_of_float32", *bfloat16_of_float32(fitted_reduced, fitted, preset, repetitions, steps))
    try:
        report.add("of_pytorch", *of_pytorch(fitted, preset, recipe, repetitions, steps), (">=", 1.0))
        report.add("bfloat16_of_pytorch", *of_pytorch(fitted_reduced, preset, reduced, repetitions, steps), (">=", 1.2))
    except ImportError as error:
        log.warning("of_pytorch left out: %s", error)
    return report


def pipeline_of_decode(
    folder: Path, preset: Preset, recipe: Recipe, repetitions: int
) -> tuple[list[float], list[float], str]:
    """Compare images per second through the classification pipeline with decoding alone, both on all cores.

    With one thread for decoding the pipeline would still use a second one, which assembles batches.

    Returns:
        Ratios to the rate of `decode_image`, which limits sizes, applies the EXIF orientation and survives damaged
        files; ratios to the rate of `tf.io.decode_jpeg`; a remark that says what was compared.
    """
    records = as_dataset(open_source(f"folder:{folder}"), "train").cache().repeat()
    batch = recipe.classification.batch
    batches_per_image = 2 * recipe.views.per_image / batch

    def tensorflow(record: dict) -> tf.Tensor:
        return tf.size(tf.io.decode_jpeg(record["image_bytes"], 3, dct_method="INTEGER_ACCURATE"))

    batches = _stream(record_batches(records, plain_crops(_drawing(preset, recipe)), batch, 0))
    decoders = [_stream(records.map(decode, CORES)) for decode in (_decoded, tensorflow)]
    to_ours: list[float] = []
    to_tensorflow: list[float] = []
    for number in range(1, repetitions + 1):
        pipeline = _timed(batches, batches_per_image)
        decoding = [_timed(images, 1) for images in decoders]
        for ratios, seconds in zip((to_ours, to_tensorflow), decoding, strict=True):
            ratios.append(seconds / pipeline)
        rates = [IMAGES / seconds for seconds in (pipeline, *decoding)]
        log.info("pipeline %d of %d: %.0f images/s, %.0f and %.0f decoded alone", number, repetitions, *rates)
    what = f"{IMAGES} JPEGs of 500x375: decode, five crops of `{PRESET}`, flips; all cores; over decoding"
    return to_ours, to_tensorflow, what


def reading_of_decode(folder: Path, repetitions: int) -> tuple[list[float], str]:
    """Compare the rate at which records are read, by Python's one thread, with decoding on all cores."""
    source = open_source(f"folder:{folder}")
    reading = _stream(RecordStream(source, "train", 0).dataset().map(lambda record: record["place"]))
    decoding = _stream(as_dataset(source, "train").cache().repeat().map(_decoded, CORES))
    ratios = []
    for number in range(1, repetitions + 1):
        read, decoded = _timed(reading, 1), _timed(decoding, 1)
        ratios.append(decoded / read)
        log.info("reading %d of %d: %.0f images/s, %.0f decoded", number, repetitions, IMAGES / read, IMAGES / decoded)
    return ratios, f"{IMAGES} JPEGs of 500x375, from their files to the pipeline; over decoding on {CORES} cores"


def fit_of_step(
    fitted: keras.Model, folder: Path, preset: Preset, recipe: Recipe, repetitions: int, steps: int
) -> tuple[list[float], str]:
    """Compare `fit` on files, decoding included, with the same step on one batch in memory."""
    source, views = open_source(f"folder:{folder}"), plain_crops(_drawing(preset, recipe))
    batches = record_batches(RecordStream(source, "train", 0).dataset(), views, BATCH, 0).prefetch(PREFETCHED)
    timed = TimedFit(next(iter(batches)), steps, repetitions)
    fitted.fit(
        batches, steps_per_epoch=PREFETCHED + steps, epochs=1 + repetitions, callbacks=[timed], verbose=0, shuffle=False
    )
    return timed.ratios, f"`{PRESET}`, batch {BATCH}, {steps} steps: fit from JPEGs over the step on a batch in memory"


class TimedFit(keras.callbacks.Callback):
    """Time the last `steps` of each epoch, then as many steps on a batch in memory. The first epoch does not count.

    The first steps of an epoch do not count either: their batches were prefetched during the steps in memory.
    """

    def __init__(self, batch: tuple[tf.Tensor, tf.Tensor], steps: int, repetitions: int):
        super().__init__()
        self.ratios: list[float] = []
        self._batch, self._steps, self._repetitions, self._started = batch, steps, repetitions, 0.0

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Start the timer after the prefetched batches."""
        if batch == PREFETCHED - 1:
            self._started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Stop the timer and time the steps on the batch in memory."""
        files = time.perf_counter() - self._started
        memory = time_call(lambda: [self.model.train_on_batch(*self._batch) for _ in range(self._steps)])
        if epoch > 0:
            self.ratios.append(memory / files)
            each = files / self._steps, memory / self._steps
            log.info("fit %d of %d: %.3f s a step, %.3f from memory", epoch, self._repetitions, *each)


def bfloat16_of_float32(
    reduced: keras.Model, exact: keras.Model, preset: Preset, repetitions: int, steps: int
) -> tuple[list[float], str]:
    """Compare the rate of the training step in bfloat16 with that in float32, on one batch in memory."""
    batch, ratios = _batch_in_memory(preset), []

    def train(model: keras.Model, steps: int) -> float:
        return time_call(lambda: [model.train_on_batch(*batch) for _ in range(steps)])

    train(reduced, 1), train(exact, 1)
    for number in range(1, repetitions + 1):
        faster, slower = train(reduced, steps), train(exact, steps)
        ratios.append(slower / faster)
        log.info("bfloat16 %d of %d: %.3f s a step, float32 %.3f", number, repetitions, faster / steps, slower / steps)
    return ratios, f"`{PRESET}`, batch {BATCH}, {steps} steps on one batch in memory: bfloat16's rate over float32's"


def of_pytorch(
    fitted: keras.Model, preset: Preset, recipe: Recipe, repetitions: int, steps: int
) -> tuple[list[float], str]:
    """Compare the rate of the training step with that of the same network, loss and optimizer in PyTorch on the CPU.

    PyTorch computes in float32, or by its autocast in bfloat16, as the recipe's precision says.

    Raises:
        ImportError: PyTorch is not installed.
    """
    batch, schedule = _batch_in_memory(preset), recipe.classification
    fitted.train_on_batch(*batch)
    ratios = []
    hyper = (schedule.learning_rate, schedule.momentum, schedule.weight_decay)
    with timed_steps(preset, CLASSES, BATCH, *hyper, recipe.precision == MIXED) as theirs:
        theirs(1)
        for number in range(1, repetitions + 1):
            ours = time_call(lambda: [fitted.train_on_batch(*batch) for _ in range(steps)])
            other = theirs(steps)
            ratios.append(other / ours)
            log.info("PyTorch %d of %d: %.3f s a step, theirs %.3f", number, repetitions, ours / steps, other / steps)
    return ratios, f"`{PRESET}`, batch {BATCH}, {steps} steps on one batch in memory: the rate over PyTorch's"


def _model(preset: Preset, recipe: Recipe) -> keras.Model:
    return classification_model(build(preset, CLASSES), recipe)


def _batch_in_memory(preset: Preset) -> tuple[tf.Tensor, tf.Tensor]:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (BATCH, preset.window, preset.window, 3), np.uint8)
    return tf.constant(pixels), tf.constant(rng.integers(0, CLASSES, BATCH, np.int32))


def _drawing(preset: Preset, recipe: Recipe) -> Drawing:
    return Drawing(preset, preset.scales, recipe.matching, recipe.views)


def _decoded(record: dict) -> tf.Tensor:
    return tf.size(decode_image(record["image_bytes"])[0])


def _stream(data: tf.data.Dataset) -> Iterator:
    options = tf.data.Options()
    options.autotune.enabled = False  # it would prefetch more and more
    return iter(data.with_options(options))


def _timed(stream: Iterator, elements_per_image: float) -> float:
    """Skip what a stream has prefetched, then time its next `IMAGES` images."""
    _take(stream, AHEAD * elements_per_image)
    return time_call(lambda: _take(stream, IMAGES * elements_per_image))


def _take(stream: Iterator, count: float) -> None:
    for _ in islice(stream, round(count)):
        pass
