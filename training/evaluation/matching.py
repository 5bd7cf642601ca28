"""Match detections to ground truth: the one greedy matcher of metrics, reports and the calibration of scores."""

from dataclasses import dataclass

import numpy as np

from training.sources.record import Record

RULES = ("coco", "voc", "place")


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
        overlaps[:, crowd] = _share_inside(boxes, np.asarray(truth_boxes)[crowd])
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


def match_answer(
    record: Record, answer: dict[str, np.ndarray], most: int | None = None, rule: str = RULES[0]
) -> Matches:
    """Match the first `most` detections of an answer to the objects of its record, from an IoU of 0.5 on.

    Difficult objects are ignored; crowds are as COCO has them by its own rule alone.
    """
    count = min(int(answer["num_detections"]), len(answer["detection_scores"]) if most is None else most)
    return match_detections(
        answer["detection_boxes"][:count],
        answer["detection_scores"][:count],
        answer["detection_classes"][:count].astype(int) - 1,
        record.boxes,
        record.labels,
        record.difficult,
        crowd=record.crowd if rule == "coco" else None,
        rule=rule,
    )


def box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return intersection over union of each box [n, 4] with each other one [m, 4], yxyx, as float64 [n, m]."""
    shared = _intersection(boxes, others)
    areas = _area(boxes)[:, None] + _area(others)
    return shared / np.maximum(areas - shared, 1e-12)


def _share_inside(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    return _intersection(boxes, others) / np.maximum(_area(boxes)[:, None], 1e-12)


def _intersection(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    first, second = _as_boxes(boxes)[:, None], _as_boxes(others)
    sides = np.minimum(first[..., 2:], second[:, 2:]) - np.maximum(first[..., :2], second[:, :2])
    return np.maximum(sides, 0.0).prod(axis=-1)


def _area(boxes: np.ndarray) -> np.ndarray:
    edges = _as_boxes(boxes)
    return (edges[:, 2:] - edges[:, :2]).prod(axis=1)


def _as_boxes(boxes: np.ndarray) -> np.ndarray:
    return np.asarray(boxes, float).reshape(-1, 4)
