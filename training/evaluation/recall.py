"""Recall by size and shape, and precision and recall of the detections that reach a score."""

from collections.abc import Iterator, Sequence

import numpy as np

from overfeat_tf.merge.calibration import displayed
from training.evaluation.matching import box_iou, match_answer
from training.evaluation.metrics import MOST, Answer, predicted_labels
from training.evaluation.size_groups import group_names, memberships
from training.sources.record import Record


class DetectionRecall:
    """Recall of all objects at an IoU of 0.5, and of what is shown at the model's display threshold (`displayed`).

    Recall is over all objects of all classes together, not a mean over classes. `difficult` objects and crowds do not
    count, nor do the detections matched to them.
    """

    def __init__(self, display_threshold: float | None = None):
        """Take the score from which detections are shown; without one only recall is measured."""
        self._threshold = display_threshold
        groups = 1 + len(group_names())  # all objects, then each group
        self._objects, self._found, self._displayed = (np.zeros(groups, int) for _ in range(3))
        self._images = self._shown = self._right = self._duplicates = 0

    def process(self, record: Record, answer: Answer) -> None:
        """Add an image and its detections, whose scores fall; one with a class without a box counts for nothing."""
        if not record.boxed.all():
            return
        count = min(int(answer["num_detections"]), MOST)
        matches = match_answer(record, answer, most=MOST)
        groups = np.insert(memberships(record.boxes, answer["image_size"]), 0, True, axis=1)
        self._images += 1
        self._objects += groups[~record.difficult].sum(axis=0)
        self._found += groups[matches.found].sum(axis=0)
        if self._threshold is None:
            return
        boxes, scores = answer["detection_boxes"][:count], answer["detection_scores"][:count]
        shown = displayed(boxes, scores, self._threshold)
        found = np.zeros(len(record.labels), bool)
        found[matches.truth[matches.right & shown]] = True
        again = box_iou(boxes, record.boxes[found]) >= 0.5
        self._displayed += groups[found].sum(axis=0)
        self._shown += int((shown & ~matches.ignored).sum())
        self._right += int((shown & matches.right).sum())
        self._duplicates += int((shown & matches.wrong & again.any(axis=1)).sum())

    def evaluate(self) -> Iterator[tuple[str, float]]:
        """Yield objects and recall, of all and of each group as recall/GROUPING/GROUP (nan without objects).

        With a display threshold also display_threshold; displayed_per_image, the detections that are shown;
        precision_displayed, recall_displayed (of each group too) and f1_displayed, of these detections; duplicates,
        how many of them are further boxes, of whatever class, with an IoU of 0.5 with an object that another one has
        found; and duplicates_per_image.
        """
        yield from self._each("objects", self._objects.tolist())
        yield from self._each("recall", _shares(self._found, self._objects))
        if self._threshold is None:
            return
        objects = int(self._objects[0])
        yield "display_threshold", self._threshold
        yield "displayed_per_image", _share(self._shown, self._images)
        yield "precision_displayed", _share(self._right, self._shown)
        yield from self._each("recall_displayed", _shares(self._displayed, self._objects))
        yield "f1_displayed", _share(2 * self._right, self._shown + objects)
        yield "duplicates", self._duplicates
        yield "duplicates_per_image", _share(self._duplicates, self._images)

    def _each(self, figure: str, values: Sequence[float]) -> Iterator[tuple[str, float]]:
        names = [figure, *(f"{figure}/{name}" for name in group_names())]
        yield from zip(names, values, strict=True)


def _shares(parts: np.ndarray, totals: np.ndarray) -> list[float]:
    return [_share(part, total) for part, total in zip(parts.tolist(), totals.tolist(), strict=True)]


def _share(part: int, total: int) -> float:
    return part / total if total else float("nan")


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
        matches, labels = match_answer(record, answer), predicted_labels(answer)
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
