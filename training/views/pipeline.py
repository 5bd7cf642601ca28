"""From a source's records to the batches that `fit` takes: source, decode, view and targets, batch, in this order."""

from functools import partial

import tensorflow as tf

from training.sources.record import Source
from training.views.batching import Bookmarks, dealt_batches, own_records
from training.views.drawing import Views
from training.views.reading import CORES, ReportUnreadable, decode_records, shuffled_records
from training.views.targets import IGNORED

PREFETCHED = 4  # batches ready while a step runs: enough to even out slow images


def training_batches(
    source: Source,
    split: str,
    views: Views,
    batch: int,
    seed: int,
    bookmarks: Bookmarks | None = None,
    rows: range | None = None,
    report: ReportUnreadable | None = None,
) -> tf.data.Dataset:
    """Batch the views of a split's records, for ever: the same batches for the same seed.

    Args:
        source, split: The data.
        views: What is shown of each record, and what it teaches.
        batch: Views in a batch.
        seed: Of all that is random.
        bookmarks: The step to begin with, and where to note how far the data is read.
        rows: The rows of each batch to make, one after the other; no others are decoded. All by default.
        report: As `decode_records` takes it.
    """
    bookmarks, rows = bookmarks or Bookmarks(), rows or range(batch)
    wanted = partial(own_records, bookmarks, batch * views.apart, batch, rows)
    records = shuffled_records(source, split, seed, bookmarks.place, views.partners, views.shows, wanted)
    batches = record_batches(records, views, len(rows), seed, bookmarks, report)
    # Last, so that decoding and drawing run while a step does; a block, since its batches come all at once.
    return batches.prefetch(max(PREFETCHED, bookmarks.batches))


def record_batches(
    records: tf.data.Dataset,
    views: Views,
    batch: int,
    seed: int,
    bookmarks: Bookmarks | None = None,
    report: ReportUnreadable | None = None,
) -> tf.data.Dataset:
    """Batch the views of records as they come, once; they begin with the place of `bookmarks`."""
    images = decode_records(records, report)  # once for all views of an image: it costs more than they do
    drawn = images.map(partial(draw_views, views, seed), num_parallel_calls=CORES, deterministic=True)
    return dealt_batches(drawn, batch, bookmarks, views.apart)


def draw_views(views: Views, seed: int, record: dict) -> tuple:
    """Draw the views of a decoded record, by its place; those of an image that can't be read teach nothing."""
    drawn = views.draw(view_seed(seed, record["place"]), record)
    return tuple((pixels, mask_targets(targets, record["status"] == "")) for pixels, targets in drawn)


def mask_targets(targets: tf.Tensor | dict[str, tf.Tensor], readable: tf.Tensor) -> tf.Tensor | dict[str, tf.Tensor]:
    """Return targets as they are where `readable`, else full of `IGNORED`, which all losses and metrics leave out."""
    return tf.nest.map_structure(lambda target: tf.where(readable, target, tf.cast(IGNORED, target.dtype)), targets)


def view_seed(seed: int, place: tf.Tensor) -> tf.Tensor:
    """Return the seed [2] of the views of the record at place int64 [2], whoever draws them and when."""
    return tf.random.fold_in(tf.random.fold_in([seed, 0], place[0]), place[1])
