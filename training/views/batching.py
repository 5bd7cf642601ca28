"""Deal views out to batches, which can be taken up at any step as if they had never ended.

Batches are a function of the seed and of the step, and of nothing else. What lies before a step is skipped record by
record, before anything is decoded or drawn; only the views of one block are drawn again.
"""

from dataclasses import dataclass, field
from threading import Lock

import tensorflow as tf

from training.views.reading import START, Place


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


def own_records(marks: Bookmarks, block: int, batch: int, rows: range, number: int, place: Place) -> bool:
    """Return whether a record goes into some rows of its batches, and note where blocks begin.

    Args:
        marks: Where to note them.
        block: Records in a block.
        batch: Rows of a batch; of the records in a block each gives its views to one row, in turn.
        rows: The rows.
        number: The record's, from the beginning of the block of `marks` on.
        place: And its place.
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
    # A block is so many parts, of which each gives a batch in turn: in one tensor they would be copied once more.
    return parts.interleave(in_turn, cycle_length=apart, block_length=1).skip(marks.step - marks.block * marks.batches)
