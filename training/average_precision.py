"""Average precision by the rules of Pascal VOC (2007, and 2010 onwards) and of ILSVRC's detection task.

COCO's own is pycocotools' (`training.metrics`); the programs of the other two are in Matlab alone.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from training.detection_matching import box_iou, match_detections
from training.metrics import Answer, guessed
from training.rows import Rows, by_label
from training.sources.record import Record

Curve = tuple[np.ndarray, np.ndarray]  # precision and recall, best detection first
Area = Callable[[np.ndarray, np.ndarray], float]
Judge = Callable[[Record, Answer], np.ndarray]  # tells what each detection is: int [n]
# What a detection is: right, wrong, or left out of the count.
RIGHT, WRONG, EXCUSED = 1, 0, -1


def eleven_points(precision: np.ndarray, recall: np.ndarray) -> float:
    """Average, over the recalls 0, 0.1 ... 1, the best precision at that recall or beyond (VOC 2007)."""
    levels = np.linspace(0.0, 1.0, 11)
    # As the development kit compares them: 0.1 * 3 is above 0.3 in floating point.
    reached = recall[None] >= levels[:, None] - 1e-12
    return float(np.where(reached, precision, 0.0).max(axis=1, initial=0.0).mean())


def area_under(precision: np.ndarray, recall: np.ndarray) -> float:
    """Integrate the best precision at each recall or beyond (VOC 2010 onwards, and ILSVRC)."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope).sum())


class VocDetection:
    """Mean average precision as Pascal VOC's development kit has it: eleven points (2007) and area (2010 onwards).

    A detection belongs to the object of its class that it overlaps most: right from an IoU of 0.5, once; a second one
    is wrong. Those that belong to a `difficult` object count for nothing, nor does it count as an object.
    """

    def __init__(self, class_names: Sequence[str]):
        self._counts = _Counts(class_names)

    def process(self, record: Record, answer: Answer) -> None:
        """Add an image and its detections, whose scores fall; one with a class without a box counts for nothing."""
        if record.boxed.all():
            self._counts.add(record, answer, ~record.difficult, _voc_verdicts)

    def evaluate(self) -> Iterator[tuple[str, float]]:
        """Yield voc07_map and voc_map, then each class's voc_ap/NAME by area (nan without objects)."""
        curves = self.curves()
        yield "voc07_map", mean_area(curves, eleven_points)
        yield "voc_map", mean_area(curves, area_under)
        yield from self._counts.named("voc_ap", curves, area_under)

    def curves(self) -> list[Curve | None]:
        """Give each class's precision and recall after each detection, best first; None without objects."""
        return self._counts.curves()


class IlsvrcDetection:
    """Mean average precision as ILSVRC's detection task has it.

    A detection is right where it overlaps an object of its class that no better one has found, by an IoU of 0.5; by
    less where the object is so small that ten pixels more a side would: w h / ((w + 10) (h + 10)).
    """

    def __init__(self, class_names: Sequence[str]):
        self._counts = _Counts(class_names)

    def process(self, record: Record, answer: Answer) -> None:
        """Add an image and its detections, whose scores fall; one with a class without a box counts for nothing."""
        if record.boxed.all():
            self._counts.add(record, answer, np.ones(len(record.labels), bool), _ilsvrc_verdicts)

    def evaluate(self) -> Iterator[tuple[str, float]]:
        """Yield ilsvrc_map."""
        yield "ilsvrc_map", mean_area(self._counts.curves(), area_under)


class _Counts:
    """Each class's objects, and its detections with their scores and whether they are right."""

    def __init__(self, class_names: Sequence[str]):
        self._names = tuple(class_names)
        self._found = Rows(label="i4", score="f8", right="i1")
        self._objects = np.zeros(len(self._names), int)

    def add(self, record: Record, answer: Answer, counting: np.ndarray, judge: Judge) -> None:
        np.add.at(self._objects, record.labels[counting], 1)
        labels, verdicts = guessed(answer), judge(record, answer)
        scores = answer["detection_scores"][: len(labels)]
        self._found.append(len(labels), label=labels, score=scores, right=verdicts)

    def curves(self) -> list[Curve | None]:
        """Give each class's precision and recall after each detection, best first; None without objects."""
        parts = by_label(self._found.table(), len(self._names))
        return [_curve(part, count) if count else None for part, count in zip(parts, self._objects, strict=True)]

    def named(self, prefix: str, curves: Sequence[Curve | None], area: Area) -> Iterator[tuple[str, float]]:
        for name, curve in zip(self._names, curves, strict=True):
            yield f"{prefix}/{name}", area(*curve) if curve else float("nan")


def mean_area(curves: Sequence[Curve | None], area: Area) -> float:
    """Average over the classes that have objects; nan where none has."""
    values = [area(*curve) for curve in curves if curve]
    return float(np.mean(values)) if values else float("nan")


def _curve(found: np.ndarray, objects: int) -> Curve:
    counted = found[found["right"] != EXCUSED]
    right = counted["right"][np.argsort(-counted["score"], kind="stable")]
    true = np.cumsum(right, dtype=int)
    return true / np.arange(1, len(right) + 1), true / objects


def _voc_verdicts(record: Record, answer: Answer) -> np.ndarray:
    # Not `match_detections`: a detection belongs to the object that it overlaps most, even if that is taken.
    labels = guessed(answer)
    verdicts = np.full(len(labels), WRONG)
    if not len(record.labels):
        return verdicts
    overlaps = box_iou(answer["detection_boxes"][: len(labels)], record.boxes)
    overlaps = np.where(labels[:, None] == record.labels, overlaps, -1.0)
    nearest, near = overlaps.argmax(axis=1), overlaps.max(axis=1) >= 0.5
    difficult = record.difficult[nearest]
    verdicts[near & difficult] = EXCUSED
    candidates = np.flatnonzero(near & ~difficult)
    _, first = np.unique(nearest[candidates], return_index=True)  # scores fall
    verdicts[candidates[first]] = RIGHT
    return verdicts


def _ilsvrc_verdicts(record: Record, answer: Answer) -> np.ndarray:
    count, sides = int(answer["num_detections"]), (record.boxes[:, 2:] - record.boxes[:, :2]) * answer["image_size"]
    matches = match_detections(
        answer["detection_boxes"][:count],
        answer["detection_scores"][:count],
        guessed(answer),
        record.boxes,
        record.labels,
        np.zeros(len(record.labels), bool),
        np.minimum(0.5, sides.prod(axis=1) / (sides + 10.0).prod(axis=1)),
    )
    return np.where(matches.right, RIGHT, WRONG)
