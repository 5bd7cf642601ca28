"""Check before a run what would stop it later or block it for ever, and compute the disk space that it needs."""

import logging
from collections.abc import Collection, Sequence

import tensorflow as tf

from overfeat_tf.images.decode import decode_image
from overfeat_tf.models.tasks import BY_NAME
from overfeat_tf.network.presets import Preset
from training.evaluation.average_precision import CocoDetection
from training.fit.strategy import check_batch, check_compiled
from training.fit.tensorboard import PICTURES, SIDE
from training.recipes import Recipe
from training.recipes.recipe import OPTIMIZERS
from training.run.checkpoints import KEPT
from training.sources.record import Source, check_split
from training.views.drawing import has_boxes, has_objects

SPARE = 64 * 2**20  # bytes, for what is small: scalars, histograms, the graph
PICTURE = 3 * SIDE * SIDE  # bytes at most, as a PNG of noise

log = logging.getLogger(__name__)


def check(
    recipe: Recipe, preset: Preset, source: Source, stages: Sequence[str], strategy: tf.distribute.Strategy
) -> None:
    """Check a recipe against its network, its data and the devices.

    Raises:
        ValueError: a size, scale, batch or split, or data that the run cannot use.
        ImportError: pycocotools is not there, by which detection is validated.
    """
    if recipe.scales == "preset":
        recipe.inference.scale_sizes(preset)
    placing = [stage for stage in stages if BY_NAME[stage].has_boxes]
    if placing:
        recipe.check_side(preset)
    if recipe.averaged and placing:
        raise ValueError(
            f"expected --stage classification with averaged=true; got {placing[0]}: average pooling loses where the "
            "object is"
        )
    check_compiled(strategy, recipe.jit_compile)
    for stage in stages:
        schedule = getattr(recipe, stage)
        check_batch(strategy, schedule.batch, schedule.accumulate, stage)
    _check_data(recipe, source, placing)
    if recipe.val_split in source.splits and "detection" in stages:
        CocoDetection(())


def _check_data(recipe: Recipe, source: Source, placing: Sequence[str]) -> None:
    check_split(source, recipe.train_split)
    if placing and not source.boxed:
        raise ValueError(
            f"expected boxes for {placing[0]}; {source.name} has classes alone: train it with --stage classification"
        )
    _check_images(source, recipe.train_split, bool(placing))
    if recipe.val_split in set(source.splits) - {recipe.train_split}:
        _check_images(source, recipe.val_split, bool(placing), ": --set val_split=none trains without")
    if recipe.val_split not in source.splits:
        log.info(
            "%s has no split '%s' but %s: there is no validation; choose a split with --set val_split=NAME",
            *(source.name, recipe.val_split, ", ".join(source.splits)),
        )
        if recipe.patience is not None:
            log.warning("patience=%d has no effect without validation: all epochs are trained", recipe.patience)


def _check_images(source: Source, split: str, placing: bool, remedy: str = "") -> None:
    """Raise ValueError unless an image with something to learn can be read; it looks no further than the first."""
    status = None
    for record in source.records(split):
        if has_objects(record) and (has_boxes(record) or not placing):
            status = decode_image(record.image_bytes)[1].numpy().decode()
            if not status:
                return
    if status is None:
        kind = "objects with boxes" if placing else "objects"
        raise ValueError(f"expected {kind} in split '{split}' of {source.name}; there are none{remedy}")
    where = f"split '{split}' of {source.name}"
    raise ValueError(f"expected images that can be read in {where}; of the last one: {status}{remedy}")


def disk_space(recipe: Recipe, preset: Preset, classes: int, stages: Collection[str]) -> int:
    """Return how many bytes a run takes: weights, the best and the last; checkpoints, of weights and momenta; logs."""
    schedules = [getattr(recipe, stage) for stage in stages]
    weights = 4 * sum(preset.parameters(classes, True, recipe.per_class, recipe.context).values())
    epochs = sum(schedule.epochs for schedule in schedules)
    # Old and new ones, each the best and the last; of a checkpoint the weights, their momenta and an average.
    momenta = max(OPTIMIZERS[schedule.optimizer] for schedule in schedules)
    checkpoint = (1 + momenta + (recipe.ema is not None)) * weights
    return (
        4 * weights
        + (len(stages) * KEPT + 1) * checkpoint
        + (len(stages) + 1) * weights
        + epochs * PICTURES * PICTURE
        + SPARE
    )
