"""`overfeat benchmark workers`: how many images each of several training workers decodes."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import tensorflow as tf

from overfeat_tf.cli.benchmarks.machine import describe_machine
from overfeat_tf.cli.benchmarks.report import Report, collect
from overfeat_tf.network.presets import get_preset
from training.fit.strategy import own_rows
from training.recipes import get_recipe
from training.sources import open_source
from training.sources.record import Source
from training.tasks import stage_views
from training.views.drawing import Example, Views
from training.views.pipeline import training_batches

RECIPE, STAGE, BATCH = "digits", "classification", 32
WORKERS = (1, 2, 4)


def measure(steps: int, repetitions: int) -> Report:
    """Make the batches of training with 1, 2 and 4 workers, and count the images that the busiest worker decodes.

    Args:
        steps: Batches of 32.
        repetitions: Repetitions, each with another seed.
    """
    source = open_source("digits")
    samples = collect(_ratios(source, steps, repetitions), repetitions)
    report = Report("workers", describe_machine())
    for workers in WORKERS[1:]:
        what = f"`{RECIPE}`, {STAGE}, {steps} batches of {BATCH}: {workers} times the images that a worker decodes"
        report.add(
            f"decoded_by_{workers}", samples[f"decoded_by_{workers}"], f"{what}, over those of one", ("<=", 1.05)
        )
    return report


def _ratios(source: Source, steps: int, repetitions: int) -> Iterator[dict[str, float]]:
    for seed in range(repetitions):
        decoded, whole = {}, None
        for count in WORKERS:
            found = [_batches(source, worker, count, steps, seed) for worker in range(count)]
            decoded[count] = max(images for images, _ in found)
            together = np.concatenate([batches for _, batches in found], axis=1)
            if whole is not None and not np.array_equal(whole, together):
                raise AssertionError(f"expected the batches of one process from {count} workers; they differ")
            whole = together
        yield {f"decoded_by_{count}": count * decoded[count] / decoded[1] for count in WORKERS[1:]}


def _batches(source: Source, worker: int, workers: int, steps: int, seed: int) -> tuple[int, np.ndarray]:
    """Return how many images a worker decodes for so many steps, and its rows of their pixels."""
    recipe = get_recipe(RECIPE)
    views = stage_views(STAGE, get_preset(recipe.preset), recipe, recipe.inference)
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
