"""The order in which records and their views come: a function of the seed and of the step, and of nothing else.

So a stream can be taken up at any step and goes on as if it had never ended. What lies before is skipped record by
record, before anything is decoded or drawn; only the views of one block are drawn again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from threading import Lock
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from training.sources.record import SCHEMA, Record, Source, check_split

MIXED_RECORDS = 512  # encoded images are small
MIXED_VIEWS = 512  # the views of one image should not share a batch


class Place(NamedTuple):
    """Where a view comes in the stream: pass over the records, record of the pass, view of the record; from 0."""

    pass_number: int = 0
    record: int = 0
    view: int = 0


START = Place()


def records(source: Source, split: str, seed: int, start: Place = START) -> tf.data.Dataset:
    """Repeat a split's records for ever from `start` on, in another order at each pass.

    Gives dictionaries with the elements of `SCHEMA` and "place", int64 [2]: the pass and the record of `Place`.
    """
    check_split(source, split)

    def elements() -> Iterator[dict]:
        for number in count(start.pass_number):
            skipped = start.record if number == start.pass_number else 0
            for place, record in enumerate(mix(source.records(split), (seed, number))):
                if place >= skipped:
                    yield {"place": (number, place), **{key: getattr(record, key) for key in SCHEMA}}

    signature = {"place": tf.TensorSpec([2], tf.int64), **SCHEMA}
    return tf.data.Dataset.from_generator(elements, output_signature=signature)


def mix(items: Iterator[Record], seed: tuple[int, ...]) -> Iterator[Record]:
    """Shuffle over `MIXED_RECORDS` items: each comes in the place of one drawn from those read so far."""
    rng = np.random.default_rng(seed)
    held: list[Record] = []
    for item in items:
        held.append(item)
        if len(held) > MIXED_RECORDS:
            chosen = rng.integers(len(held))
            held[chosen], held[-1] = held[-1], held[chosen]
            yield held.pop()
    for index in rng.permutation(len(held)):
        yield held[index]


@dataclass
class Bookmarks:
    """Where the blocks of views begin, noted as they are drawn; the step to begin a stream at is among them.

    Args:
        step: The batch that the stream begins with.
        block: A block that begins at or before it.
        place: And where this block begins.
    """

    step: int = 0
    block: int = 0
    place: Place = START
    _noted: dict[int, Place] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)  # tf.data notes in a thread of its own

    def __post_init__(self) -> None:
        self._noted[self.block] = self.place

    def note(self, block: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Note where a block begins; returns the block, as tf.numpy_function wants something."""
        with self._lock:
            self._noted[int(block)] = Place(*(int(number) for number in place))
        return block

    def at(self, block: int) -> tuple[int, Place]:
        """Give the last block noted that begins at or before one; forgets those before it."""
        with self._lock:
            found = max(number for number in self._noted if number <= block)
            self._noted = {number: place for number, place in self._noted.items() if number >= found}
            return found, self._noted[found]


def batches_a_block(batch: int) -> int:
    """Tell how many batches the views are mixed over."""
    return -(-MIXED_VIEWS // batch)


def mixed_batches(views: tf.data.Dataset, batch: int, seed: int, marks: Bookmarks | None = None) -> tf.data.Dataset:
    """Mix views, block by block, and batch them.

    In blocks, since what a block holds can be drawn again, which what a rolling buffer holds could not.

    Args:
        views: (place int64 [3], example), from the record on at which the block of `marks` begins.
        batch: Views in a batch.
        seed: The seed.
        marks: Where to begin, and where to note the blocks.

    Returns:
        Batched examples.
    """
    marks = marks or Bookmarks()
    size = batches_a_block(batch) * batch

    def noted(index: tf.Tensor, view: tuple) -> tuple:
        place, example = view
        block = index // size
        done = tf.cond(
            index % size == 0,
            lambda: tf.numpy_function(marks.note, [block, place], tf.int64, stateful=True),
            lambda: tf.identity(block),
        )
        with tf.control_dependencies([done]):
            return tf.nest.map_structure(tf.identity, example)

    def mixed(*window) -> tf.data.Dataset:
        # Every block in the same order: the records come in another one each time.
        whole = tf.data.Dataset.zip(window[0] if len(window) == 1 else window)
        return whole.shuffle(size, seed=seed, reshuffle_each_iteration=False).batch(batch, drop_remainder=True)

    examples = views.skip(marks.place.view).enumerate(start=marks.block * size).map(noted)
    # A window holds the views themselves, without copying them; the next one fills while the batches ahead are used.
    return examples.window(size).flat_map(mixed).skip(marks.step - marks.block * batches_a_block(batch))
