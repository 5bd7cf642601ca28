"""What a metric is, the one matcher of detections to ground truth, and ILSVRC's top-1 and top-5 errors.

A metric is fed one image at a time and yields (name, value) pairs at the end. Answers are the contract's outputs,
one image's rows of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from training.sources.record import Record

Answer = dict[str, np.ndarray]
MOST = 100  # detections of an image that count, as in COCO
RULES = ("coco", "voc", "place")  # of matching


class Metric(Protocol):
    """`process` takes a record and its answer; `evaluate` yields the figures.

    Metrics of boxes expect records whose objects all have one.
    """

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


def predicted_labels(answer: Answer) -> np.ndarray:
    """Return the labels that an image was given, from 0, best first: int [n]."""
    return answer["detection_classes"][: int(answer["num_detections"])].astype(int) - 1


@dataclass(frozen=True)
class Matches:
    """What n detections and m objects of one image were matched to.

    Attributes:
        truth: Index of the object that a detection is matched to, -1 without one: int [n].
        right: Whether a detection is matched to an object that counts: bool [n].
        ignored: Whether a detection is matched to an ignored object, so neither right nor wrong: bool [n].
        found: Whether an object that counts has a match: bool [m].
    """

    truth: np.ndarray
    right: np.ndarray
    ignored: np.ndarray
    found: np.ndarray

    @property
    def wrong(self) -> np.ndarray:
        """Whether a detection is a false positive: bool [n]."""
        return self.truth < 0


def match_detections(
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    truth_boxes: np.ndarray,
    truth_classes: np.ndarray,
    ignored: np.ndarray,
    iou_threshold: float | np.ndarray = 0.5,
    crowd: np.ndarray | None = None,
    rule: str = RULES[0],
) -> Matches:
    """Match the detections of one image to its objects, greedily by falling score.

    A detection takes the object that it overlaps most, if the IoU reaches the threshold. Objects that count are taken
    once; an ignored one takes any number of detections, where pycocotools lets it take only one unless it is a crowd.
    Which objects a detection may take is the rule's:

    - "coco": those of its class that no better detection has taken, ones that count before ignored ones.
    - "voc": those of its class; if the one that it overlaps most is taken, it has none.
    - "place": those of any class that no better detection has taken, ones that count first, then its own class's.

    Args:
        boxes, scores, classes: Detections, not necessarily sorted: [n, 4], [n], [n].
        truth_boxes, truth_classes: Objects: [m, 4], [m]. Boxes are yxyx, all in one unit.
        ignored: Objects that do not count (VOC's `difficult`, crowds): bool [m].
        iou_threshold: The least IoU of a match, of all objects or of each: float or [m].
        crowd: Ignored objects whose overlap is the share of the detection that lies inside: bool [m].
        rule: Of `RULES`.
    """
    classes, truth_classes, ignored = np.asarray(classes), np.asarray(truth_classes), np.asarray(ignored, bool)
    overlaps = box_iou(boxes, truth_boxes)
    if crowd is not None and np.any(crowd):
        shared, areas, _ = _intersections(boxes, np.asarray(truth_boxes)[crowd])
        overlaps[:, crowd] = shared / np.maximum(areas[:, None], 1e-12)
    own_class = classes[:, None] == truth_classes
    possible = (own_class | (rule == "place")) & (overlaps >= iou_threshold)
    # Overlaps are at most 1, so what is added to them decides.
    first = {"coco": 2.0 * ~ignored, "voc": 0.0, "place": own_class + 2.0 * ~ignored}[rule]
    merit = np.where(possible, overlaps + first, -1.0)
    truth, taken = np.full(len(classes), -1), np.zeros(len(truth_classes), bool)
    for i in np.argsort(-np.asarray(scores, float), kind="stable"):
        if not possible[i].any():
            continue
        best = int((merit[i] if rule == "voc" else np.where(taken, -1.0, merit[i])).argmax())
        if possible[i, best] and not taken[best]:
            truth[i] = best
            taken[best] = not ignored[best]
    matched = truth >= 0
    right = matched.copy()
    right[matched] = ~ignored[truth[matched]]
    found = np.zeros(len(truth_classes), bool)
    found[truth[right]] = True
    return Matches(truth, right, matched & ~right, found)


def match_answer(record: Record, answer: Answer, most: int | None = None, rule: str = RULES[0]) -> Matches:
    """Match the first `most` detections of an answer to the objects of its record, from an IoU of 0.5 on.

    Difficult objects are ignored; a crowd excuses what lies in it, as in COCO, but by VOC's rule, which has no crowds.
    """
    count = int(answer["num_detections"]) if most is None else min(int(answer["num_detections"]), most)
    return match_detections(
        answer["detection_boxes"][:count],
        answer["detection_scores"][:count],
        predicted_labels(answer)[:count],
        record.boxes,
        record.labels,
        record.difficult,
        crowd=None if rule == "voc" else record.crowd,
        rule=rule,
    )


def box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return intersection over union of each box [n, 4] with each other one [m, 4], yxyx, as float64 [n, m]."""
    shared, areas, other_areas = _intersections(boxes, others)
    return shared / np.maximum(areas[:, None] + other_areas - shared, 1e-12)


def _intersections(boxes: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the areas that boxes share [n, m], those of the boxes [n] and those of the others [m]."""
    first, second = (np.asarray(each, float).reshape(-1, 4) for each in (boxes, others))
    sides = np.minimum(first[:, None, 2:], second[:, 2:]) - np.maximum(first[:, None, :2], second[:, :2])
    areas, other_areas = ((each[:, 2:] - each[:, :2]).prod(axis=1) for each in (first, second))
    return np.maximum(sides, 0.0).prod(axis=-1), areas, other_areas


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
        """Add an image and its guesses; one without objects counts for nothing."""
        if len(record.labels) == 0:
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


def right_classes(record: Record, answer: Answer) -> np.ndarray:
    """Return for each guess whether its class is one of the image's: bool [n]."""
    return np.isin(predicted_labels(answer), record.labels)


def right_boxes(record: Record, answer: Answer) -> np.ndarray:
    """Return for each guess whether its box has an IoU of at least 0.5 with an object of its class: bool [n]."""
    # Not `match_detections`: ILSVRC lets several guesses name one object.
    labels = predicted_labels(answer)
    overlaps = box_iou(answer["detection_boxes"][: len(labels)], record.boxes)
    return ((labels[:, None] == record.labels) & (overlaps >= 0.5)).any(axis=1)
