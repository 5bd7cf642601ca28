"""Batches for `fit`, and a source that raises an error when its data is gone."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import ceil
from typing import Any

import tensorflow as tf

from overfeat_tf.models.model import Model
from training.fit.strategy import shard_batches
from training.recipes import Recipe, Schedule
from training.sources.checks import Finding, Log
from training.sources.record import Record, Source, count_images
from training.tasks import stage_views
from training.views.data_service import DataService
from training.views.pipeline import Bookmarks, training_batches

# Passes over a split without a record to show: a stream shuffles what it reads, and may begin within a pass; and
# training and validation may read the same split.
PASSES = 4
# Unreadable images one after the other. Where a tenth of the images cannot be read, so many never follow each other.
IN_A_ROW = 32
VALIDATION_BATCHES = 4  # at least, of a split that is too large

log = logging.getLogger(__name__)


class Supply:
    """A Source that passes another's records on, and ends where they are of no use.

    An input pipeline repeats its records for ever, so data that has gone away, or that has nothing to show, would keep
    it busy for ever. Here a pass without a record raises OSError, as do `PASSES` without one to show, `IN_A_ROW`
    images that cannot be read, and `stop`.

    Attributes:
        problem: What ended it; the pipeline's own error repeats it with a traceback.
    """

    def __init__(self, source: Source):
        self.problem: Exception | None = None
        self._source, self._not_shown, self._stopped = source, Counter[str](), False
        self._log, self._last, self._in_a_row = Log(), -1, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def records(self, split: str, limit: int | None = None) -> Iterator[Record]:
        """Yield the split's records, as the source does."""
        count = 0
        try:
            for record in self._source.records(split, limit):
                if self._stopped:
                    raise OSError("stopped")
                count += 1
                self._not_shown[split] += 1
                yield record
            if self._stopped or count == 0 or self._not_shown[split] > PASSES * count:
                what = "none is left: is the data still there?"
                if count:
                    what = "none has an object to learn: `overfeat inspect` shows what is wrong"
                raise OSError(f"expected images in split '{split}' of {self._source.name}; {what}")
        except Exception as error:
            self.problem = self.problem or error
            raise

    def noting(self, split: str, shows: Callable[[Record], bool]) -> Callable[[Record], bool]:
        """Return `shows`, whether a record of the split has anything to show, so that each one that has is noted."""

        def noted(record: Record) -> bool:
            shown = shows(record)
            if shown:
                self._not_shown[split] = 0
            return shown

        return noted

    def unreadable(self, number: int, finding: Finding) -> None:
        """Log an image that cannot be read, once, by its number in the stream; raise OSError after `IN_A_ROW`."""
        self._log(finding)
        self._in_a_row = self._in_a_row + 1 if number == self._last + 1 else 1
        self._last = number
        if self._in_a_row == IN_A_ROW:
            self.problem = self.problem or OSError(
                f"expected images that can be read in {self._source.name}; {IN_A_ROW} one after the other cannot, the "
                f"last of them {finding}"
            )
            raise self.problem

    def stop(self) -> None:
        """End at the next record."""
        self._stopped = True


def stage_batches(
    stage: str,
    model: Model,
    recipe: Recipe,
    supply: Supply,
    split: str,
    rows: range,
    bookmarks: Bookmarks | None = None,
    service: DataService | None = None,
) -> tf.data.Dataset:
    """Return rows of a stage's batches, from the step of `bookmarks` on, noting there how far the data is read."""
    views = stage_views(stage, model.network.preset, recipe, model.options)
    views = replace(views, shows=supply.noting(split, views.shows))
    batch = getattr(recipe, stage).batch
    return training_batches(supply, split, views, batch, recipe.seed, bookmarks, rows, supply.unreadable, service)


def validation_data(
    stage: str, model: Model, recipe: Recipe, source: Source, supply: Supply
) -> tuple[tf.data.Dataset | None, int | None]:
    """Return what `fit` validates a stage on after each epoch, the same each time, and how many batches that is.

    None for detection, which is scored by its answers, and without a validation split.
    """
    if stage == "detection" or recipe.val_split not in source.splits:
        return None, None
    schedule = getattr(recipe, stage)
    once = replace(recipe, views=recipe.views.validating)
    at_every_scale = recipe.views.whole_image and stage != "classification"
    views_each = len(model.options.scale_sizes(model.network.preset)) if at_every_scale else 1
    count = _validation_batches(stage, schedule, source, recipe.val_split, views_each)

    def views(rows: range) -> tf.data.Dataset:
        return stage_batches(stage, model, once, supply, recipe.val_split, rows).take(count).repeat()

    return shard_batches(tf.distribute.get_strategy(), views, schedule.batch), count


def _validation_batches(stage: str, schedule: Schedule, source: Source, split: str, views_each: int) -> int:
    """Return how many batches of views a stage is validated on after each epoch: the views of each image, where cheap.

    A batch takes a third of a step of training, so they may be a quarter of an epoch's steps: a twelfth of its time.
    """
    most = max(VALIDATION_BATCHES, schedule.epoch_steps // 4)
    enough = most * schedule.batch // views_each
    images = count_images(source, split, enough + 1)
    if images > enough:
        log.info("%s: the loss is validated on %d images of split '%s', not on all", stage, enough, split)
    return min(ceil(images * views_each / schedule.batch), most)
