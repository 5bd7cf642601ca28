"""Read records: a split's, in an order that depends on the seed alone, from any place on; and their images, decoded."""

import os
from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from overfeat_tf.images.decode import decode_image
from training.sources.checks import Finding, Kind, Log
from training.sources.record import SCHEMA, Record, Source, check_split

PARTNER_OBJECTS = ("boxes", "labels", "crowd")
MIXED_RECORDS = 512  # encoded images are small
# Threads of a step of the pipeline. tf.data's own tuning gains nothing over one for each core, and was seen to take up
# to 22 s to let go of a pipeline that ends.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # Linux has it


class Place(NamedTuple):
    """Where a record comes in the stream: pass over the records, record of the pass; from 0."""

    pass_number: int = 0
    record: int = 0


START = Place()


def shuffled_records(source: Source, split: str, seed: int, start: Place = START, partners: int = 0) -> tf.data.Dataset:
    """Repeat a split's records for ever from `start` on, in another order at each pass.

    Gives dictionaries with the elements of `SCHEMA` and "place", int64 [2], as `Place`; and with "partners", as
    `composition.mosaic` takes them, the images and objects of so many records that follow.
    """
    check_split(source, split)

    def records() -> Iterator[tuple[tuple[int, int], Record]]:
        for number in count(start.pass_number):
            skipped = start.record if number == start.pass_number else 0
            for place, record in enumerate(mix(source.records(split), (seed, number))):
                if place >= skipped:
                    yield (number, place), record

    def elements() -> Iterator[dict]:
        held: deque[tuple[tuple[int, int], Record]] = deque()
        for each in records():
            held.append(each)
            if len(held) > partners:
                place, record = held.popleft()
                element = {"place": place, **{key: getattr(record, key) for key in SCHEMA}}
                yield {**element, "partners": _joined([other for _, other in held])} if partners else element

    signature: dict = {"place": tf.TensorSpec([2], tf.int64), **SCHEMA}
    if partners:
        signature["partners"] = {
            **{key: SCHEMA[key] for key in PARTNER_OBJECTS},
            "image_bytes": tf.TensorSpec([partners], tf.string),
            "owner": tf.TensorSpec([None], tf.int32),
        }
    return tf.data.Dataset.from_generator(elements, output_signature=signature)


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


def decode_records(data: tf.data.Dataset) -> tf.data.Dataset:
    """Decode images, as "image" uint8 [H, W, 3]; skip those that can't be read, with a line each in the log."""
    log = Log()  # of each image once, in however many passes it comes

    def report(name: bytes, status: bytes) -> bool:
        log(Finding(Kind.UNREADABLE, name.decode(), status.decode()))
        return False

    def decode(record: dict) -> dict:
        image, status = decode_image(record["image_bytes"])
        return {
            "image": image,
            "status": status,
            "id": record["image_id"],
            **{k: record[k] for k in ("place", "boxes", "labels", "boxed", "crowd", "partners") if k in record},
        }

    def readable(record: dict) -> tf.Tensor:
        what = [record["id"], record["status"]]
        return tf.cond(record["status"] == "", lambda: True, lambda: tf.numpy_function(report, what, tf.bool))

    return numbered(data).map(decode, num_parallel_calls=CORES, deterministic=True).filter(readable)


def numbered(data: tf.data.Dataset) -> tf.data.Dataset:
    """Number records that do not come from `shuffled_records`: "place" as there."""
    if "place" in data.element_spec:
        return data
    return data.enumerate().map(lambda index, record: {"place": tf.stack([0, index]), **record})
