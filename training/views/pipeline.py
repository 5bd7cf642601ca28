"""From a source's records to the batches that `fit` takes: source, decode, view and targets, batch, in this order."""

import tensorflow as tf

from training.sources.record import Source
from training.views.batching import Bookmarks, dealt_batches
from training.views.drawing import Views
from training.views.reading import CORES, decode_records, shuffled_records

PREFETCHED = 4  # batches ready while a step runs: enough to even out slow images


def training_batches(
    source: Source, split: str, views: Views, batch: int, seed: int, bookmarks: Bookmarks | None = None
) -> tf.data.Dataset:
    """Batch the views of a split's records, for ever: the same batches for the same seed.

    Args:
        source, split: The data.
        views: What is shown of each record, and what it teaches.
        batch: Views in a batch.
        seed: Of all that is random.
        bookmarks: The step to begin with, and where to note how far the data is read.
    """
    bookmarks = bookmarks or Bookmarks()
    records = shuffled_records(source, split, seed, bookmarks.place, views.partners)
    batches = record_batches(records, views, batch, seed, bookmarks)
    # Last, so that decoding and drawing run while a step does; a block, since its batches come all at once.
    return batches.prefetch(max(PREFETCHED, bookmarks.batches))


def record_batches(
    records: tf.data.Dataset, views: Views, batch: int, seed: int, bookmarks: Bookmarks | None = None
) -> tf.data.Dataset:
    """Batch the views of records as they come, once; they begin with the place of `bookmarks`."""
    shown = records.filter(views.shows)
    images = decode_records(shown)  # once for all views of an image: it costs more than they do
    drawn = images.map(
        lambda record: (record["place"], views.draw(view_seed(seed, record["place"]), record)),
        num_parallel_calls=CORES,
        deterministic=True,
    )
    return dealt_batches(drawn, batch, bookmarks, views.apart)


def view_seed(seed: int, place: tf.Tensor) -> tf.Tensor:
    """Return the seed [2] of the views of the record at place int64 [2], whoever draws them and when."""
    return tf.random.fold_in(tf.random.fold_in([seed, 0], place[0]), place[1])
