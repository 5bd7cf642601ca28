"""Read records: a split's, in an order that depends on the seed alone, from any place on; and their images, decoded."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from overfeat_tf.images.decode import decode_image
from training.sources.checks import Finding, Kind, Log
from training.sources.record import SCHEMA, Item, Record, Source, check_split

PARTNER_OBJECTS = ("boxes", "labels", "crowd")
MIXED_RECORDS = 512  # encoded images are small
PACKED_RECORDS = 16  # that pass from Python to TensorFlow at a time: one by one, each would take a millisecond
# Threads of a step of the pipeline. tf.data's own tuning gains nothing over one for each core, and was seen to take up
# to 22 s to let go of a pipeline that ends.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # Linux has it

# What is drawn for an image that can't be read, and then teaches nothing. It keeps its place in the batch: which images
# a batch has must not depend on what only the worker that decodes them can know.
BLANK = {
    "image": np.full((32, 32, 3), 128, np.uint8),
    "boxes": np.array([[0, 0, 1, 1]], np.float32),
    "labels": np.zeros(1, np.int32),
    "boxed": np.ones(1, bool),
    "crowd": np.zeros(1, bool),
}

ReportUnreadable = Callable[[int, Finding], None]  # the number of the image in the stream, and what is wrong with it


class Place(NamedTuple):
    """Where a record comes in the stream: pass over the records, record of the pass; from 0."""

    pass_number: int = 0
    record: int = 0


START = Place()


@dataclass(frozen=True)
class RecordStream:
    """A split's records, repeated for ever from `start` on, in another order at each pass.

    Iterating gives dictionaries with the elements of `SCHEMA` and "place", int64 [2], as `Place`; and with "partners",
    as `composition.mosaic` takes them.

    Attributes:
        source, split, seed: The data, and the seed of its order.
        start: The first record.
        partners: How many of the records that follow come with each record.
        shows: Leaves records out.
        wanted: Chooses among the others by their number, from 0, and place. What it refuses is read, but neither copied
            nor decoded; it may be a partner.
    """

    source: Source
    split: str
    seed: int
    start: Place = START
    partners: int = 0
    shows: Callable[[Record], bool] = lambda record: True
    wanted: Callable[[int, Place], bool] = lambda number, place: True

    def __iter__(self) -> Iterator[dict]:
        numbers, held = count(), deque[tuple[Place, Record]]()
        for each in self._records():
            held.append(each)
            if len(held) > self.partners:
                place, record = held.popleft()
                if self.wanted(next(numbers), place):
                    element = {"place": np.array(place), **{key: getattr(record, key) for key in SCHEMA}}
                    partners = {"partners": _joined([other for _, other in held])} if self.partners else {}
                    yield element | partners

    def _records(self) -> Iterator[tuple[Place, Record]]:
        for number in count(self.start.pass_number):
            skipped = self.start.record if number == self.start.pass_number else 0
            for index, record in enumerate(mix(self.source.records(self.split), (self.seed, number))):
                if index >= skipped and self.shows(record):
                    yield Place(number, index), record

    def dataset(self) -> tf.data.Dataset:
        """Return the stream as a tf.data.Dataset.

        Raises:
            ValueError: the source has no such split.
        """
        check_split(self.source, self.split)
        specs = tf.nest.flatten(self.signature)
        joined = tuple(tf.TensorSpec([None, *spec.shape[1 if _varies(spec) else 0 :]], spec.dtype) for spec in specs)
        ends = tuple(tf.TensorSpec([None], tf.int64) for spec in specs if _varies(spec))
        packs = tf.data.Dataset.from_generator(self._packs, output_signature=(joined, ends))
        return packs.flat_map(self._unpack)

    def _packs(self) -> Iterator[tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]]:
        """Join some elements after the other, as each tensor that Python gives to TensorFlow takes its time.

        Yields:
            Each tensor of the elements, stacked, or end to end where its length varies; and where its parts begin and
            end in those that vary.
        """
        specs, elements = tf.nest.flatten(self.signature), iter(self)
        while pack := list(islice(elements, PACKED_RECORDS)):
            joined, ends = [], []
            for spec, column in zip(specs, zip(*map(tf.nest.flatten, pack), strict=True), strict=True):
                if _varies(spec):
                    joined.append(np.concatenate(column))
                    ends.append(np.cumsum([0, *map(len, column)]))
                else:
                    joined.append(np.array(column, spec.dtype.as_numpy_dtype))
            yield tuple(joined), tuple(ends)

    def _unpack(self, joined: tuple[tf.Tensor, ...], ends: tuple[tf.Tensor, ...]) -> tf.data.Dataset:
        """Take apart what `_packs` has joined."""
        specs = tf.nest.flatten(self.signature)

        def element(index: tf.Tensor) -> dict:
            parts = iter(ends)
            tensors = []
            for spec, values in zip(specs, joined, strict=True):
                part = next(parts) if _varies(spec) else None
                tensors.append(values[index] if part is None else values[part[index] : part[index + 1]])
            return tf.nest.pack_sequence_as(self.signature, tensors)

        return tf.data.Dataset.range(tf.shape(ends[0], tf.int64)[0] - 1).map(element)

    @property
    def signature(self) -> dict:
        """The specifications of what iterating gives."""
        signature: dict = {"place": tf.TensorSpec([2], tf.int64), **SCHEMA}
        if self.partners:
            signature["partners"] = {
                **{key: SCHEMA[key] for key in PARTNER_OBJECTS},
                "image_bytes": tf.TensorSpec([self.partners], tf.string),
                "owner": tf.TensorSpec([None], tf.int32),
            }
        return signature


def _varies(spec: tf.TensorSpec) -> bool:
    """Return whether elements of a tensor differ in length."""
    return not spec.shape.is_fully_defined()


def _joined(records: list[Record]) -> dict:
    """Join the images and objects of records; one with a class without a box has neither: nobody knows where it is."""
    shown = [record if record.boxed.all() else None for record in records]
    known = [record for record in shown if record is not None]
    owners = [np.full(len(record.labels), number, np.int32) for number, record in enumerate(shown) if record]
    none = Record.of_objects(b"", "", [], [])
    return {
        **{key: np.concatenate([getattr(record, key) for record in (none, *known)]) for key in PARTNER_OBJECTS},
        "image_bytes": np.array([record.image_bytes if record is not None else b"" for record in shown], object),
        "owner": np.concatenate([np.zeros(0, np.int32), *owners]),
    }


def mix(items: Iterator[Item], seed: tuple[int, ...]) -> Iterator[Item]:
    """Shuffle over `MIXED_RECORDS` items: each comes in the place of one drawn from those read so far."""
    rng = np.random.default_rng(seed)
    held: list[Item] = []
    for item in items:
        held.append(item)
        if len(held) > MIXED_RECORDS:
            chosen = rng.integers(len(held))
            held[chosen], held[-1] = held[-1], held[chosen]
            yield held.pop()
    for index in rng.permutation(len(held)):
        yield held[index]


def report_once() -> ReportUnreadable:
    """Return a report that logs each image once, in however many passes it comes."""
    log = Log()
    return lambda number, finding: log(finding)


def decode_records(data: tf.data.Dataset, report: ReportUnreadable | None = None) -> tf.data.Dataset:
    """Decode images, as "image" uint8 [H, W, 3], and report those that can't be read.

    Args:
        data: Records.
        report: Told of such images, in order; by default `report_once`.

    Returns:
        What views are drawn of, with "status" string [], empty where the image was read. One that was not is `BLANK`.
    """
    report = report or report_once()

    def tell(number: np.ndarray, name: bytes, status: bytes) -> bool:
        report(int(number), Finding(Kind.UNREADABLE, name.decode(), status.decode()))
        return True

    def reported(number: tf.Tensor, record: dict) -> dict:
        what = [number, record.pop("id"), record["status"]]
        told = tf.cond(record["status"] == "", lambda: True, lambda: tf.numpy_function(tell, what, tf.bool))
        with tf.control_dependencies([told]):
            return {**record, "status": tf.identity(record["status"])}

    decoded = numbered(data).map(decode_record, num_parallel_calls=CORES, deterministic=True)
    return decoded.enumerate().map(reported)


def decode_record(record: dict) -> dict:
    """Decode the image of a record, as `decode_records` does; with "id"."""
    image, status = decode_image(record["image_bytes"])
    shown = {"image": image, **{key: record[key] for key in ("boxes", "labels", "boxed", "crowd")}}
    shown = tf.cond(status == "", lambda: shown, lambda: {key: tf.constant(BLANK[key]) for key in shown})
    kept = {key: record[key] for key in ("place", "partners") if key in record}
    return {**kept, **shown, "status": status, "id": record["image_id"]}


def numbered(data: tf.data.Dataset) -> tf.data.Dataset:
    """Number records that do not come from a `RecordStream`: "place" as there."""
    if "place" in data.element_spec:
        return data
    return data.enumerate().map(lambda index, record: {"place": tf.stack([0, index]), **record})
