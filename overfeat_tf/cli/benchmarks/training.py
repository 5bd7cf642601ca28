"""`overfeat benchmark train` and `workers`: data pipeline, `fit` and training step; what several workers decode."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import keras
import numpy as np
import tensorflow as tf

from overfeat_tf.cli.benchmarks.harness import LineProgram, Report, collect, compare_rates, time_call
from overfeat_tf.cli.benchmarks.inputs import CLASSES, noise_batch, write_photographs
from overfeat_tf.compute.precision import MIXED
from overfeat_tf.images.decode import decode_image
from overfeat_tf.network.convnet import build
from overfeat_tf.network.presets import Preset, get_preset
from training.fit.stages import classification_model
from training.fit.strategy import keep_freed_memory, own_rows
from training.recipes import Recipe, get_recipe
from training.sources import open_source
from training.sources.record import Source, as_dataset
from training.tasks import stage_views
from training.views.drawing import Drawing, Example, Views, plain_crops
from training.views.pipeline import PREFETCHED, record_batches, training_batches
from training.views.reading import CORES, RecordStream

PRESET, BATCH = "fast", 32
IMAGES, AHEAD = 1024, 2560  # decoded in a repetition, and before it: the batches that are prefetched
WORKERS_RECIPE, WORKERS_STAGE = "digits", "classification"
WORKERS = (1, 2, 4)

log = logging.getLogger(__name__)


def measure(repetitions: int, steps: int) -> Report:
    """Measure the training of `fast`, with so many steps on each side of a ratio. Both sides are measured in turn."""
    keep_freed_memory()  # as `train` does
    report = Report("train")
    recipe, preset = get_recipe(f"imagenet-{PRESET}"), get_preset(PRESET)
    jpegs = f"{IMAGES} JPEGs of 500x375"
    in_memory = f"`{PRESET}`, batch {BATCH}, {steps} steps on one batch in memory"
    with TemporaryDirectory(prefix="overfeat-benchmark-") as folder:
        write_photographs(Path(folder) / "photograph")
        source = open_source(f"folder:{folder}")
        ours, tensorflow = pipeline_of_decode(source, preset, recipe, repetitions)
        what = f"{jpegs}: decode, five crops of `{PRESET}`, flips; all cores; over decoding"
        report.add("pipeline_of_decode", ours, f"{what} alone", (">=", 0.9))
        report.add("pipeline_of_decode_jpeg", tensorflow, f"{what} with nothing but TensorFlow's JPEG decoder")
        what = f"{jpegs}, from their files to the pipeline; over decoding on {CORES} cores"
        report.add("reading_of_decode", reading_of_decode(source, repetitions), what, (">=", 1.0))
        exact = classification_model(build(preset, CLASSES), recipe)
        what = f"`{PRESET}`, batch {BATCH}, {steps} steps: fit from JPEGs over the step on a batch in memory"
        report.add("fit_of_step", fit_of_step(exact, source, preset, recipe, repetitions, steps), what, (">=", 0.95))
    mixed_recipe = replace(recipe, precision=MIXED)
    mixed = classification_model(build(preset, CLASSES), mixed_recipe)
    what = f"{in_memory}: bfloat16's rate over float32's"
    report.add("bfloat16_of_float32", bfloat16_of_float32(mixed, exact, preset, repetitions, steps), what)
    what = f"{in_memory}: the rate over PyTorch's"
    try:
        report.add("of_pytorch", of_pytorch(exact, preset, recipe, repetitions, steps), what, (">=", 1.0))
        ratios = of_pytorch(mixed, preset, mixed_recipe, repetitions, steps)
        report.add("bfloat16_of_pytorch", ratios, what, (">=", 1.2))
    except ImportError as error:
        log.warning("of_pytorch left out: %s", error)
    return report


def pipeline_of_decode(source: Source, preset: Preset, recipe: Recipe, repetitions: int) -> list[list[float]]:
    """Compare images per second through the classification pipeline with decoding alone, both on all cores.

    With one thread for decoding the pipeline would still use a second one, which assembles batches.

    Returns:
        Ratios to the rate of `decode_image`, which limits sizes, applies the EXIF orientation and survives damaged
        files, and ratios to the rate of `tf.io.decode_jpeg`.
    """
    records = as_dataset(source, "train").cache().repeat()
    batch = recipe.classification.batch

    def tensorflow(record: dict) -> tf.Tensor:
        return tf.size(tf.io.decode_jpeg(record["image_bytes"], 3, dct_method="INTEGER_ACCURATE"))

    batches = record_batches(records, _crops(preset, recipe), batch, 0)
    sides = [_timed(batches, 2 * recipe.views.per_image / batch)]
    sides += [_timed(records.map(decode, CORES)) for decode in (_decoded, tensorflow)]
    return compare_rates("images/s: pipeline, decoding, TensorFlow's decoder", IMAGES, sides, repetitions)


def reading_of_decode(source: Source, repetitions: int) -> list[float]:
    """Compare the rate at which records are read, by Python's one thread, with decoding on all cores."""
    reading = RecordStream(source, "train", 0).dataset().map(lambda record: record["place"])
    decoding = as_dataset(source, "train").cache().repeat().map(_decoded, CORES)
    sides = [_timed(reading), _timed(decoding)]
    (ratios,) = compare_rates("images/s: reading, decoding", IMAGES, sides, repetitions)
    return ratios


def fit_of_step(
    fitted: keras.Model, source: Source, preset: Preset, recipe: Recipe, repetitions: int, steps: int
) -> list[float]:
    """Compare `fit` on files, decoding included, with the same step on one batch in memory."""
    batches = training_batches(source, "train", _crops(preset, recipe), BATCH, 0)
    timed = TimedFit(next(iter(batches)), steps, repetitions)
    fitted.fit(
        batches, steps_per_epoch=PREFETCHED + steps, epochs=1 + repetitions, callbacks=[timed], verbose=0, shuffle=False
    )
    return timed.ratios


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
        memory = time_call(partial(train_steps, self.model, self._batch, self._steps))
        if epoch > 0:
            self.ratios.append(memory / files)
            each = files / self._steps, memory / self._steps
            log.info("fit %d of %d: %.3f s a step, %.3f from memory", epoch, self._repetitions, *each)


def bfloat16_of_float32(
    mixed: keras.Model, exact: keras.Model, preset: Preset, repetitions: int, steps: int
) -> list[float]:
    """Compare the rate of the training step in bfloat16 with that in float32, on one batch in memory."""
    batch = noise_batch(preset, BATCH, CLASSES)
    sides = []
    for model in (mixed, exact):
        model.train_on_batch(*batch)
        sides.append(partial(time_call, partial(train_steps, model, batch, steps)))
    (ratios,) = compare_rates("steps/s: bfloat16, float32", steps, sides, repetitions)
    return ratios


def of_pytorch(fitted: keras.Model, preset: Preset, recipe: Recipe, repetitions: int, steps: int) -> list[float]:
    """Compare the rate of the training step with that of the same network, loss and optimizer in PyTorch on the CPU.

    PyTorch computes in float32, or by its autocast in bfloat16, as the recipe's precision says.

    Raises:
        ImportError: PyTorch is not installed.
    """
    if find_spec("torch") is None:
        raise ImportError("expected PyTorch to compare with; it is not installed: pip install torch")
    batch, schedule = noise_batch(preset, BATCH, CLASSES), recipe.classification
    fitted.train_on_batch(*batch)
    hyper = (schedule.learning_rate, schedule.momentum, schedule.weight_decay)
    settings = (preset.name, CLASSES, BATCH, *hyper, int(recipe.precision == MIXED))
    with LineProgram("overfeat_tf.cli.benchmarks.torch_step", *settings) as program:

        def theirs(steps: int) -> float:
            program.write(steps)
            return float(program.read())

        theirs(1)
        sides = (partial(time_call, partial(train_steps, fitted, batch, steps)), partial(theirs, steps))
        (ratios,) = compare_rates(f"steps/s in {recipe.precision}: ours, PyTorch's", steps, sides, repetitions)
    return ratios


def train_steps(fitted: keras.Model, batch: tuple[tf.Tensor, tf.Tensor], steps: int) -> None:
    """Train for some steps on one batch in memory."""
    for _ in range(steps):
        fitted.train_on_batch(*batch)


def _crops(preset: Preset, recipe: Recipe) -> Views:
    return plain_crops(Drawing(preset, preset.scales, recipe.matching, recipe.views))


def _decoded(record: dict) -> tf.Tensor:
    return tf.size(decode_image(record["image_bytes"])[0])


def _timed(data: tf.data.Dataset, elements_per_image: float = 1.0) -> Callable[[], float]:
    """Return a function that skips what a stream has prefetched, and returns the seconds of its next `IMAGES`."""
    options = tf.data.Options()
    options.autotune.enabled = False  # it would prefetch more and more
    stream = iter(data.with_options(options))

    def take(images: int) -> None:
        for _ in islice(stream, round(images * elements_per_image)):
            pass

    def timed() -> float:
        take(AHEAD)
        return time_call(partial(take, IMAGES))

    return timed


def measure_workers(steps: int, repetitions: int) -> Report:
    """Make the batches of training with 1, 2 and 4 workers, and count the images that the busiest worker decodes."""
    report = Report("workers")
    samples = collect(_images_per_worker(open_source("digits"), steps, repetitions), repetitions)
    for workers in WORKERS[1:]:
        images = f"{workers} times the images that a worker decodes, over those of one"
        what = f"`{WORKERS_RECIPE}`, {WORKERS_STAGE}, {steps} batches of {BATCH}: {images}"
        report.add(f"decoded_by_{workers}", samples[f"decoded_by_{workers}"], what, ("<=", 1.05))
    return report


def _images_per_worker(source: Source, steps: int, repetitions: int) -> Iterator[dict[str, float]]:
    for seed in range(repetitions):
        decoded: dict[int, int] = {}
        expected: np.ndarray | None = None
        for count in WORKERS:
            found = [_batches_of_worker(source, worker, count, steps, seed) for worker in range(count)]
            decoded[count] = max(images for images, _ in found)
            together = np.concatenate([batches for _, batches in found], axis=1)
            if expected is not None and not np.array_equal(expected, together):
                raise RuntimeError(f"expected the batches of one process from {count} workers; they differ")
            expected = together
        yield {f"decoded_by_{count}": count * decoded[count] / decoded[1] for count in WORKERS[1:]}


def _batches_of_worker(source: Source, worker: int, workers: int, steps: int, seed: int) -> tuple[int, np.ndarray]:
    """Make a worker's part of the batches; return the number of images that it decodes, and its rows of pixels."""
    recipe = get_recipe(WORKERS_RECIPE)
    views = stage_views(WORKERS_STAGE, get_preset(recipe.preset), recipe, recipe.inference)
    decoded = [0]

    def count(place: np.ndarray) -> np.ndarray:
        decoded[0] += 1
        return place

    def draw(drawing_seed: tf.Tensor, record: dict) -> tuple[Example, ...]:  # once for each image that is decoded
        place = tf.numpy_function(count, [record["place"]], tf.int64)
        with tf.control_dependencies([place]):
            return views.draw(tf.identity(drawing_seed), record)

    counted: Views = replace(views, draw=draw)
    context = tf.distribute.InputContext(workers, worker, workers)
    made = own_rows(lambda rows: training_batches(source, "train", counted, BATCH, seed, rows=rows), BATCH, context)
    pixels = np.stack([pixels for pixels, _ in made.take(steps).as_numpy_iterator()])
    return decoded[0], pixels
