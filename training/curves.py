"""Precision-recall curves of detection at IoU 0.5, as TensorBoard's pr_curve plugin wants them: by score threshold."""

from collections.abc import Iterator, Sequence

import numpy as np

from training.detection_matching import match_answer
from training.metrics import Answer, guessed
from training.sources.record import Record

THRESHOLDS = 101
LEVELS = np.linspace(0.0, 1.0, THRESHOLDS)
EACH = 20  # classes that get a curve of their own beside the one of all


class PrecisionRecall:
    """Counts right and wrong detections, class by class.

    A detection is right where it has an IoU of at least 0.5 with an object of its class that no better one has found;
    those on `difficult` objects and crowds count for nothing.
    """

    def __init__(self, class_names: Sequence[str]):
        self.class_names = tuple(class_names)
        # Wrong and right ones of each class by how many thresholds they reach: no more for more images.
        self._found = np.zeros((len(self.class_names), 2, THRESHOLDS + 1), int)
        self._objects = np.zeros(len(self.class_names), int)

    def process(self, record: Record, answer: Answer) -> None:
        """Add an image and its detections; one that has a class without a box counts for nothing."""
        if not record.boxed.all():
            return
        np.add.at(self._objects, record.labels[~record.difficult], 1)
        matches, labels = match_answer(record, answer), guessed(answer)
        reached = np.searchsorted(LEVELS, answer["detection_scores"][: len(labels)], "right")
        counted = ~matches.ignored
        np.add.at(self._found, (labels[counted], matches.right[counted].astype(int), reached[counted]), 1)

    def evaluate(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield "all" and the first classes that have objects, each with float64 [6, THRESHOLDS].

        Rows are true positives, false positives, true negatives (0: there is no telling), false negatives, precision
        and recall of the detections that score at least the threshold, 0 to 1 in equal steps. Precision is 0 where
        there are none, as the plugin's own.
        """
        yield "all", _curve(self._found.sum(axis=0), int(self._objects.sum()))
        for label in np.flatnonzero(self._objects)[:EACH]:
            yield self.class_names[label], _curve(self._found[label], int(self._objects[label]))

    def best_threshold(self) -> float:
        """Return the threshold of the best F1 over all classes; 0.5 where nothing is right yet."""
        true, false, _, missed, *_ = _curve(self._found.sum(axis=0), int(self._objects.sum()))
        f1 = true / np.maximum(true + (false + missed) / 2, 1)
        return float(LEVELS[f1.argmax()]) if f1.max() > 0 else 0.5


def _curve(found: np.ndarray, objects: int) -> np.ndarray:
    false, true = found[:, :0:-1].cumsum(axis=1)[:, ::-1]
    precision, recall = true / np.maximum(true + false, 1), true / max(objects, 1)
    return np.stack([true, false, np.zeros_like(true), objects - true, precision, recall]).astype(float)
