"""The plan of a training, which the log shows as it begins: data, device, stages, steps; and the time left."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

import tensorflow as tf

from overfeat_tf.network.convnet import Network
from training.fit.strategy import device_name
from training.recipes import Recipe
from training.sources.record import Source

COUNTED = 2000  # images of a split: a second or two
TIMED = 8  # images that are shown to the network
# Of the features' time forward: backward twice as much, and the heads. Drawing views runs beside it, on the same cores.
STEP_OF_FORWARD, FROZEN_STEP_OF_FORWARD = 3.6, 1.6
LEAST_SCORED, MOST_SCORED = 20, 200  # validation images after an epoch, where the recipe leaves it open

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """The stages that are left.

    Attributes:
        steps: Of each stage, those that are left.
        seconds: An estimate of each stage's step; empty where nothing was measured.
        scored: How many validation images are scored after each epoch, of the stages whose answers are.
    """

    steps: Mapping[str, int]
    seconds: Mapping[str, float]
    scored: Mapping[str, int] = field(default_factory=dict)

    def seconds_left(self, stage: str, steps: int, a_step: float) -> float:
        """Return the time that is left over all stages, with so many steps of one that take so long each."""
        later = list(self.steps)[list(self.steps).index(stage) + 1 :]
        factor = a_step / self.seconds[stage] if stage in self.seconds else 1.0
        return steps * a_step + factor * sum(self.steps[name] * self.seconds.get(name, a_step) for name in later)

    def lines(self, recipe: Recipe) -> Iterator[str]:
        """Render the plan."""
        for stage, steps in self.steps.items():
            schedule = getattr(recipe, stage)
            took = f", about {duration(steps * self.seconds[stage])}" if stage in self.seconds else ""
            begun = f" of {schedule.steps}" if steps < schedule.steps else ""
            of = f"{steps}{begun} steps of {schedule.batch} views"
            yield f"plan: {stage}, {of}, {schedule.epoch_count} epoch{'s' * (schedule.epoch_count != 1)}{took}"
        if len(self.steps) > 1 and self.seconds:
            total = sum(steps * self.seconds[stage] for stage, steps in self.steps.items())
            yield f"plan: about {duration(total)} in all"


def scored_images(stage: str, recipe: Recipe, scales: Iterable[tuple[int, int]]) -> int:
    """Return how many validation images are scored after each epoch of a stage.

    Where the recipe leaves it open, as many as are scanned in the time that the epoch's steps take, by the arithmetic
    of the features. A pyramid for small objects takes up to sixteen times that of the network's own: with 25 steps an
    epoch, validation on a hundred images would take nine times as long as the steps.

    Args:
        stage: Localization or detection.
        recipe: Sized for its data.
        scales: (height, width) of the scales that are scanned.
    """
    if recipe.validation_images is not None:
        return recipe.validation_images
    schedule = getattr(recipe, stage)
    shown = schedule.epoch_steps * schedule.batch * recipe.side**2 * _step_of_forward(stage, recipe)
    scanned = sum(height * width for height, width in scales)
    return min(max(round(shown / scanned), LEAST_SCORED), MOST_SCORED)


def report_data(source: Source, recipe: Recipe, scored: Mapping[str, int], strategy: tf.distribute.Strategy) -> None:
    """Log what is in the splits, of how many validation images each stage's answers are scored, and the device."""
    for split in dict.fromkeys((recipe.train_split, recipe.val_split)):
        if split not in source.splits:
            continue
        images = objects = 0
        for record in islice(source.records(split), COUNTED):
            images, objects = images + 1, objects + int((~record.crowd).sum())
        more = "at least " if images == COUNTED else ""
        log.info("data: %s of %s: %s%d images, %d objects", split, source.name, more, images, objects)
        for stage, count in scored.items() if split == recipe.val_split else ():
            if images > count:
                some = f"{count} of these images, not all: --set validation_images=..."
                log.info("data: after each epoch %s is scored on %s", stage, some)
    names = source.class_names
    shown = ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
    log.info("data: %d class%s: %s", len(names), "es" * (len(names) != 1), shown)
    log.info("device: %s", device_name(strategy))


def make_plan(network: Network, recipe: Recipe, steps: Mapping[str, int], measure: bool) -> Plan:
    """Plan the stages that have steps left, with times if they are to be measured, which takes a few seconds."""
    if not measure:
        return Plan(steps, {})
    sides = {stage: network.preset.window if stage == "classification" else recipe.side for stage in steps}
    an_image = {side: _forward_seconds(network, side) for side in dict.fromkeys(sides.values())}

    def step_of(stage: str) -> float:
        return an_image[sides[stage]] * getattr(recipe, stage).batch * _step_of_forward(stage, recipe)

    return Plan(steps, {stage: step_of(stage) for stage in steps})


def _step_of_forward(stage: str, recipe: Recipe) -> float:
    """Return the time of a stage's step over that of the features' forward pass."""
    heads_alone = stage == "localization" and not recipe.through_features
    frozen = heads_alone or getattr(recipe, stage).backbone_multiplier == 0
    return FROZEN_STEP_OF_FORWARD if frozen else STEP_OF_FORWARD


def duration(seconds: float) -> str:
    """Write a time in hours and minutes, or minutes and seconds."""
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes}:{left:02} min"


def _forward_seconds(network: Network, side: int) -> float:
    """Measure how long the features take of an image of so many pixels, the first time not counted."""
    pixels, took = tf.zeros([TIMED, side, side, 3]), 0.0
    forward = tf.function(lambda: network.features(pixels, training=False), autograph=False)
    for _ in range(2):
        began = time.monotonic()
        forward()
        took = time.monotonic() - began
    return took / TIMED
