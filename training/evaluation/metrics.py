"""What a metric is, and ILSVRC's classification and localization errors.

A metric is fed one image at a time and yields (name, value) pairs at the end. Answers are the contract's outputs,
one image's rows of them.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from training.evaluation.matching import box_iou
from training.sources.record import Record

Answer = dict[str, np.ndarray]
MOST = 100  # detections of an image that count, as in COCO


class Metric(Protocol):
    """`process` takes a record and its answer; `evaluate` yields the figures."""

    def process(self, record: Record, answer: Answer) -> None: ...

    def evaluate(self) -> Iterator[tuple[str, float]]: ...


class Rows:
    """Rows of named columns, appended some at a time.

    A list of tuples takes some two hundred bytes a detection; a data set has millions of them.
    """

    def __init__(self, **columns: str):
        """Name the columns, each with its numpy type."""
        self._type = np.dtype(list(columns.items()))
        self._bytes = bytearray()

    def append(self, count: int, **values: np.ndarray | float) -> None:
        """Add `count` rows: each column's values, or one for all."""
        rows = np.empty(count, self._type)
        for name in rows.dtype.names or ():
            rows[name] = values[name]
        self._bytes += rows.tobytes()

    def table(self) -> np.ndarray:
        """Return all rows so far, structured, without copying; nothing can be appended while it is held."""
        return np.frombuffer(self._bytes, self._type)


def by_label(rows: np.ndarray, count: int) -> list[np.ndarray]:
    """Split rows by their column "label", 0 to count - 1, each part in the given order."""
    indices = np.argsort(rows["label"], kind="stable")
    ends = np.searchsorted(rows["label"][indices], np.arange(1, count))
    return [rows[part] for part in np.split(indices, ends)]


class IlsvrcErrors:
    """ILSVRC's top-1 and top-5 errors over images with objects: of classification, or of localization.

    A guess is right when its class is one of the image's; for localization, when its box also has an IoU of at
    least 0.5 with an object of that class. Answers are those of `localize`, best guess first.

    Args:
        kind: "top" or "localization", which begins the figures' names.
    """

    def __init__(self, kind: str):
        self._kind, self._images, self._right = kind, 0, np.zeros(2, int)

    def process(self, record: Record, answer: Answer) -> None:
        """Add an image and its guesses; one without objects counts for nothing, without boxes not for localization."""
        if len(record.labels) == 0 or (self._kind == "localization" and not record.boxed.all()):
            return
        right = (right_classes if self._kind == "top" else right_boxes)(record, answer)
        self._images += 1
        self._right += [right[:1].any(), right[:5].any()]

    def evaluate(self) -> Iterator[tuple[str, float]]:
        """Yield the error of one guess and of five, in 0..1.

        Raises:
            ValueError: no image counts.
        """
        if not self._images:
            wanted = "objects" if self._kind == "top" else "boxes"
            raise ValueError(f"expected images with {wanted} to score against; there are none")
        for guesses, right in zip((1, 5), self._right.tolist(), strict=True):
            yield f"{self._kind}{guesses}_error", 1.0 - right / self._images


def predicted_labels(answer: Answer) -> np.ndarray:
    """Return the labels that an image was given, from 0, best first: int [n]."""
    return answer["detection_classes"][: int(answer["num_detections"])].astype(int) - 1


def right_classes(record: Record, answer: Answer) -> np.ndarray:
    """Return for each guess whether its class is one of the image's: bool [n]."""
    return np.isin(predicted_labels(answer), record.labels)


def right_boxes(record: Record, answer: Answer) -> np.ndarray:
    """Return for each guess whether its box has an IoU of at least 0.5 with an object of its class: bool [n]."""
    # Not `match_detections`: ILSVRC lets several guesses name one object.
    labels = predicted_labels(answer)
    overlaps = box_iou(answer["detection_boxes"][: len(labels)], record.boxes)
    return ((labels[:, None] == record.labels) & (overlaps >= 0.5)).any(axis=1)
