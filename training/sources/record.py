"""The record schema that every source gives, and what a source is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
import tensorflow as tf

from overfeat_tf.arguments import suggest

SCHEMA = {
    "image_bytes": tf.TensorSpec([], tf.string),  # encoded: whatever overfeat_tf.images.decode reads
    "image_id": tf.TensorSpec([], tf.string),
    "boxes": tf.TensorSpec([None, 4], tf.float32),  # normalised yxyx in the image as displayed
    "labels": tf.TensorSpec([None], tf.int32),  # index into the source's class_names
    "boxed": tf.TensorSpec([None], tf.bool),  # False: a class without a box, whose box is then the whole image
    "difficult": tf.TensorSpec([None], tf.bool),  # VOC, COCO's crowds: not counted when missed, nor when found
    "crowd": tf.TensorSpec([None], tf.bool),  # COCO: many objects in one box, so `difficult` too
    "truncated": tf.TensorSpec([None], tf.bool),
    "occluded": tf.TensorSpec([None], tf.bool),
}

FLAGS = ("difficult", "crowd", "truncated", "occluded")  # of an object

Item = TypeVar("Item")


@dataclass(frozen=True)
class Record:
    """One image and its n objects; n = 0 is ordinary. Fields as in `SCHEMA`, in numpy."""

    image_bytes: bytes
    image_id: str
    boxes: np.ndarray
    labels: np.ndarray
    boxed: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    truncated: np.ndarray
    occluded: np.ndarray

    @classmethod
    def of_objects(cls, image_bytes: bytes, image_id: str, boxes, labels, **flags) -> "Record":
        """Make a record of lists; flags left out are all False, but for `boxed`."""
        n = len(labels)
        boxes, labels = np.asarray(boxes, np.float32).reshape(n, 4), np.asarray(labels, np.int32).reshape(n)
        flags = {"boxed": [True] * n, **{name: [False] * n for name in FLAGS}, **flags}
        arrays = {name: np.asarray(values, bool).reshape(n) for name, values in flags.items()}
        return cls(image_bytes, image_id, boxes, labels, **arrays)

    @classmethod
    def of_class(cls, image_bytes: bytes, image_id: str, label: int) -> "Record":
        """Make a record of an image that has a class and no box."""
        return cls.of_objects(image_bytes, image_id, [[0, 0, 1, 1]], [label], boxed=[False])


class Source(Protocol):
    """A data set: its classes, and the records of a split in a fixed order.

    `name` is the SOURCE of the command line; `boxed` is False where no object has a box, only a class. `records` may
    skip what it can't read, after saying so to the report that the source was opened with.
    """

    @property
    def name(self) -> str: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def splits(self) -> tuple[str, ...]: ...

    @property
    def boxed(self) -> bool: ...

    def records(self, split: str, limit: int | None = None) -> Iterator[Record]: ...


def as_dataset(source: Source, split: str) -> tf.data.Dataset:
    """Stream a split's records as a tf.data.Dataset of dictionaries with the elements of `SCHEMA`."""
    check_split(source, split)

    def elements() -> Iterator[dict]:
        for record in source.records(split):
            yield {key: getattr(record, key) for key in SCHEMA}

    return tf.data.Dataset.from_generator(elements, output_signature=SCHEMA)


def count_images(source: Source, split: str, most: int) -> int:
    """Count a split's images, up to `most`, without reading their files where the source lists them.

    Raises:
        ValueError: the source has no such split.
    """
    check_split(source, split)
    listed = getattr(source, "images", source.records)
    return sum(1 for _ in islice(listed(split), most))


def check_split(source: Source, split: str) -> None:
    """Raise ValueError, naming those that exist, unless the source has the split; a divided one also has "all"."""
    known = (*source.splits, *getattr(source, "united", ()))
    if split not in known:
        raise ValueError(
            f"expected a split of {source.name}, one of {', '.join(known)}; got '{split}'{suggest(split, known)}"
        )


def check_classes(labels: Sequence[str], source: Source) -> None:
    """Raise ValueError, naming the first that differs, unless a model's classes are the source's, in their order."""
    if len(labels) != len(source.class_names):
        raise ValueError(
            f"expected the model's {len(labels)} classes ({', '.join(labels[:5])}...); "
            f"{source.name} has {len(source.class_names)} ({', '.join(source.class_names[:5])}...)"
        )
    for number, (ours, theirs) in enumerate(zip(labels, source.class_names, strict=True), start=1):
        if ours != theirs:
            raise ValueError(
                f"expected the model's {len(labels)} classes in {source.name}, by name and in order; "
                f"number {number} is '{ours}' in the model, '{theirs}' in the data"
            )


def mixed(items: Sequence[Item]) -> list[Item]:
    """Shuffle items with a fixed seed: in the order on disk, a batch would hold one class."""
    return [items[index] for index in np.random.default_rng(0).permutation(len(items))]
