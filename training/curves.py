"""Precision-recall curves of detection at IoU 0.5, as TensorBoard's pr_curve plugin wants them: by score threshold."""

from collections.abc import Iterator, Sequence

import numpy as np

from training.metrics import Answer, iou
from training.sources.record import Record

THRESHOLDS = 101
EACH = 20  # classes that get a curve of their own beside the one of all


class PrecisionRecall:
    """Counts right and wrong detections, class by class.

    A detection is right where it has an IoU of at least 0.5 with an object of its class that no better one has found;
    those on `difficult` objects count for nothing. As pycocotools matches them, but for crowds.
    """

    def __init__(self, class_names: Sequence[str]):
        self.class_names = tuple(class_names)
        self._found: list[list[tuple[float, bool]]] = [[] for _ in self.class_names]
        self._objects = np.zeros(len(self.class_names), int)

    def process(self, record: Record, answer: Answer) -> None:
        """Add an image and its detections; one that has a class without a box counts for nothing."""
        if not record.boxed.all():
            return
        np.add.at(self._objects, record.labels[~record.difficult], 1)
        free = np.ones(len(record.labels), bool)
        for i in range(int(answer["num_detections"])):  # scores fall
            label = int(answer["detection_classes"][i]) - 1
            overlaps = np.where(record.labels == label, iou(answer["detection_boxes"][i], record.boxes), 0.0)
            # Objects that count come first, as in COCO: only then may a difficult one excuse it.
            merits = np.where(free & (overlaps >= 0.5), overlaps + ~record.difficult, 0.0)
            best = int(merits.argmax()) if len(merits) else -1
            right = best >= 0 and merits[best] > 0.0
            if right and record.difficult[best]:
                continue
            if right:
                free[best] = False
            self._found[label].append((float(answer["detection_scores"][i]), bool(right)))

    def evaluate(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield "all" and the first classes that have objects, each with float64 [6, THRESHOLDS].

        Rows are true positives, false positives, true negatives (0: there is no telling), false negatives, precision
        and recall of the detections that score at least the threshold, 0 to 1 in equal steps. Precision is 0 where
        there are none, as the plugin's own.
        """
        yield "all", _curve([pair for pairs in self._found for pair in pairs], int(self._objects.sum()))
        for label in np.flatnonzero(self._objects)[:EACH]:
            yield self.class_names[label], _curve(self._found[label], int(self._objects[label]))


def _curve(found: list[tuple[float, bool]], objects: int) -> np.ndarray:
    scores, right = np.array([s for s, _ in found]), np.array([r for _, r in found], bool)
    passed = scores[None] >= np.linspace(0.0, 1.0, THRESHOLDS)[:, None] if found else np.zeros((THRESHOLDS, 0), bool)
    true, false = (passed & right).sum(axis=1), (passed & ~right).sum(axis=1)
    precision, recall = true / np.maximum(true + false, 1), true / max(objects, 1)
    return np.stack([true, false, np.zeros_like(true), objects - true, precision, recall]).astype(float)
