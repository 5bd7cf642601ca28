"""Read records: a split's, in an order that depends on the seed alone, from any place on; and their images, decoded."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from overfeat_tf.images.decode import decode_image
from training.sources.checks import Finding, Kind, Log
from training.sources.record import SCHEMA, Item, Record, Source, check_split

PARTNER_OBJECTS = ("boxes", "labels", "crowd")
MIXED_RECORDS = 512  # encoded images are small
PACKED_RECORDS = 16  # that pass from Python to TensorFlow at a time: alone, each would take a millisecond
# Threads of a step of the pipeline. tf.data's own tuning gains nothing over one for each core, and was seen to take up
# to 22 s to let go of a pipeline that ends.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # Linux has it

# What is drawn for an image that can't be read, and is left out of the loss. It keeps its place in the batch: which
# images a batch has must not depend on what only the worker that decodes them can know.
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
    as `augmentation.mosaic` takes them.

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
        strings = tf.nest.map_structure(_packed_spec, self.signature)
        packs = tf.data.Dataset.from_generator(self._packs, output_signature=strings)
        return packs.flat_map(tf.data.Dataset.from_tensor_slices).map(lambda packed: unpack(packed, self.signature))

    def _packs(self) -> Iterator[dict]:
        """Yield columns of `PACKED_RECORDS` packed records."""
        packed = map(pack, self)
        while some := list(islice(packed, PACKED_RECORDS)):
            yield stack(some)

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


def pack(record: dict) -> dict:
    """Turn a record's arrays into bytes, so that records with different numbers of objects are alike."""

    def packed(value: Any) -> Any:
        if isinstance(value, dict):
            return pack(value)
        if isinstance(value, np.ndarray):
            return value.tobytes()
        return np.array(value, object) if isinstance(value, list) else value

    return {key: packed(value) for key, value in record.items()}


def stack(packed: list[dict]) -> dict:
    """Stack packed records: each key's strings as one array."""
    return tf.nest.map_structure(lambda *values: np.array(values, object), *packed)


def unpack(packed: dict, signature: dict) -> dict:
    """Do the reverse of `pack`, in the graph."""

    def unpacked(value: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
        if spec.dtype == tf.string:
            return tf.ensure_shape(value, spec.shape)
        return tf.reshape(tf.io.decode_raw(value, spec.dtype), [-1 if side is None else side for side in spec.shape])

    return {
        key: unpack(packed[key], spec) if isinstance(spec, dict) else unpacked(packed[key], spec)
        for key, spec in signature.items()
    }


def _packed_spec(spec: tf.TensorSpec) -> tf.TensorSpec:
    """Return the specification of a column of what `pack` makes of a tensor."""
    return tf.TensorSpec([None, *(spec.shape if spec.dtype == tf.string else ())], tf.string)


def _joined(records: list[Record]) -> dict:
    """Join the images and objects of records; one with a class without a box has neither: nobody knows where it is."""
    shown = [record if record.boxed.all() else None for record in records]
    known = [record for record in shown if record is not None]
    owners = [np.full(len(record.labels), number, np.int32) for number, record in enumerate(shown) if record]
    none = Record.of_objects(b"", "", [], [])
    return {
        **{key: np.concatenate([getattr(record, key) for record in (none, *known)]) for key in PARTNER_OBJECTS},
        "image_bytes": [record.image_bytes if record is not None else b"" for record in shown],
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

    if "place" not in data.element_spec:  # records of no `RecordStream`
        data = data.enumerate().map(lambda index, record: {"place": tf.stack([0, index]), **record})
    return data.map(decode_record, num_parallel_calls=CORES, deterministic=True).enumerate().map(reported)


def decode_record(record: dict) -> dict:
    """Decode the image of a record, as `decode_records` does; with "id"."""
    image, status = decode_image(record["image_bytes"])
    shown = {"image": image, **{key: record[key] for key in ("boxes", "labels", "boxed", "crowd")}}
    shown = tf.cond(status == "", lambda: shown, lambda: {key: tf.constant(BLANK[key]) for key in shown})
    kept = {key: record[key] for key in ("place", "partners") if key in record}
    return {**kept, **shown, "status": status, "id": record["image_id"]}
