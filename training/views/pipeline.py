"""From a source's records to the batches that `fit` takes: source, decode, view and targets, batch, in this order."""

from functools import partial

import tensorflow as tf

from training.sources.record import Source
from training.views.batching import Bookmarks, dealt_batches, own_records
from training.views.data_service import DataService
from training.views.drawing import Views, draw_views
from training.views.reading import CORES, RecordStream, ReportUnreadable, decode_records, report_once

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
    service: DataService | None = None,
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
        service: Reads, decodes and draws, where this machine's cores are too few. `source` has its records then.
    """
    bookmarks, rows = bookmarks or Bookmarks(), rows or range(batch)
    wanted = partial(own_records, bookmarks, batch * views.apart, batch, rows)
    stream = RecordStream(source, split, seed, bookmarks.place, views.partners, views.shows, wanted)
    if service is not None:
        drawn = service.drawn_views(stream, views, seed, report or report_once())
        batches = dealt_batches(drawn, len(rows), bookmarks, views.apart)
    else:
        batches = record_batches(stream.dataset(), views, len(rows), seed, bookmarks, report)
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
