"""Match detections to ground truth: the one greedy matcher of metrics, reports and the calibration of scores."""

from dataclasses import dataclass

import numpy as np

from training.sources.record import Record


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
) -> Matches:
    """Match the detections of one image to its objects, greedily by falling score, as COCO does.

    A detection takes the object of its class that it overlaps most among those that no better detection has taken, if
    the IoU reaches the threshold. Objects that count come before ignored ones, and are taken once. An ignored object
    takes any number of detections; pycocotools lets it take only one unless it is a crowd.

    Args:
        boxes, scores, classes: Detections, not necessarily sorted: [n, 4], [n], [n].
        truth_boxes, truth_classes: Objects: [m, 4], [m]. Boxes are yxyx, all in one unit.
        ignored: Objects that do not count (VOC's `difficult`, crowds): bool [m].
        iou_threshold: The least IoU of a match, of all objects or of each: float or [m].
        crowd: Ignored objects whose overlap is the share of the detection that lies inside: bool [m].
    """
    classes, truth_classes, ignored = np.asarray(classes), np.asarray(truth_classes), np.asarray(ignored, bool)
    overlaps = box_iou(boxes, truth_boxes)
    if crowd is not None and np.any(crowd):
        overlaps[:, crowd] = _share_inside(boxes, np.asarray(truth_boxes)[crowd])
    possible = (classes[:, None] == truth_classes) & (overlaps >= iou_threshold)
    merit = np.where(possible, overlaps + 2.0 * ~ignored, -1.0)  # overlaps are at most 1: objects that count come first
    truth = np.full(len(classes), -1)
    for i in np.argsort(-np.asarray(scores, float), kind="stable"):
        if not possible[i].any():
            continue
        best = int(merit[i].argmax())
        if merit[i, best] >= 0.0:
            truth[i] = best
            if not ignored[best]:
                merit[:, best] = -1.0
    matched = truth >= 0
    right = matched.copy()
    right[matched] = ~ignored[truth[matched]]
    found = np.zeros(len(truth_classes), bool)
    found[truth[right]] = True
    return Matches(truth, right, matched & ~right, found)


def match_answer(record: Record, answer: dict[str, np.ndarray], iou_threshold: float | np.ndarray = 0.5) -> Matches:
    """Match one image's answer of `detect` to the objects of its record; `difficult` ones and crowds are ignored."""
    count = int(answer["num_detections"])
    return match_detections(
        answer["detection_boxes"][:count],
        answer["detection_scores"][:count],
        answer["detection_classes"][:count].astype(int) - 1,
        record.boxes,
        record.labels,
        record.difficult,
        iou_threshold,
        record.crowd,
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
