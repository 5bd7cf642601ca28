"""From a source's records to the batches that `fit` takes: source, decode, view and targets, batch, in this order.

Batches are a function of the seed and of the step, and of nothing else, so a stream can begin at any step as if it had
never ended. What lies before the step is skipped record by record, before anything is decoded or drawn; only the views
of one block are drawn again.
"""

from dataclasses import dataclass, field
from functools import partial
from threading import Lock

import tensorflow as tf

from training.sources.record import Source
from training.views.data_service import DataService
from training.views.drawing import Views, draw_views
from training.views.reading import CORES, START, Place, RecordStream, ReportUnreadable, decode_records, report_once

PREFETCHED = 4  # batches ready while a step runs: enough to even out slow images


@dataclass
class Bookmarks:
    """Where the blocks of batches begin, noted as they are read; the step to begin a stream at is among them.

    Args:
        step: The batch that the stream begins with.
        block: A block that begins at or before it.
        place: And where this block begins.
        batches: In a block: 0 before the stream sets it, which refuses to begin at one of another number.
    """

    step: int = 0
    block: int = 0
    place: Place = START
    batches: int = 0
    _noted: dict[int, Place] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)  # tf.data reads in a thread of its own

    def __post_init__(self) -> None:
        self._noted[self.block] = self.place

    def note(self, block: int, place: Place) -> None:
        """Note where a block begins."""
        with self._lock:
            self._noted[block] = place

    def at(self, step: int) -> tuple[int, Place]:
        """Return the last block noted that begins at or before a step's, and its place; forgets those before it."""
        with self._lock:
            found = max(number for number in self._noted if number <= step // max(self.batches, 1))
            self._noted = {number: place for number, place in self._noted.items() if number >= found}
            return found, self._noted[found]


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
        views: The views of each record, and their targets.
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


def own_records(marks: Bookmarks, block: int, batch: int, rows: range, number: int, place: Place) -> bool:
    """Return whether a record goes into some rows of its batches, and note where blocks begin.

    Args:
        marks: Where to note them.
        block: Records in a block.
        batch, rows: Rows of a batch, to which records give their views in turn; and those that are made here.
        number, place: The record's, its number counted from the beginning of the block of `marks`.
    """
    if number % block == 0:
        marks.note(marks.block + number // block, place)
    return number % batch in rows


def dealt_batches(
    drawn: tf.data.Dataset, batch: int, marks: Bookmarks | None = None, apart: int = 1
) -> tf.data.Dataset:
    """Deal the views of each image out to batches, so that no two of one image share a batch.

    A block is as many images as `apart` batches have views. It gives the batches of their first views, then those of
    their second, and so on, in whole tensors rather than view by view.

    Args:
        drawn: The views of each image, from the record on at which the block of `marks` begins: a tuple of examples, of
            the same number for each image. What is first in one image may be of another size than what is second, as
            whole images at several scales are.
        batch: Views in a batch, or the rows of one that are made here.
        marks: Where to begin.
        apart: Batches from one that shows an image to the next that does; so many times the memory.

    Returns:
        Batched examples.

    Raises:
        ValueError: `marks` are of another stream.
    """
    marks, batches = marks or Bookmarks(), apart * len(drawn.element_spec)
    if marks.batches not in (0, batches):
        raise ValueError(
            f"expected to go on in blocks of {batches} batches; got a place in blocks of {marks.batches}, "
            f"as an earlier version dealt them: use another --run"
        )
    marks.batches = batches

    def in_turn(*batches) -> tf.data.Dataset:
        first, *others = (tf.data.Dataset.from_tensors(each) for each in batches)
        for other in others:
            first = first.concatenate(other)
        return first

    parts = drawn.batch(batch, drop_remainder=True)
    # Each part of a block gives a batch in turn: in one tensor they would be copied once more.
    return parts.interleave(in_turn, cycle_length=apart, block_length=1).skip(marks.step - marks.block * marks.batches)
