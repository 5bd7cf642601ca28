"""Recall by the objects' size and shape, and precision and recall of the detections that reach a score."""

from collections.abc import Iterator, Sequence

import numpy as np

from overfeat_tf.merge.calibration import displayed
from training.evaluation.metrics import MOST, Answer, box_iou, match_answer, predicted_labels
from training.sources.record import Record

# Least and greatest measure of each group, both included: COCO's areas share their edges, as in pycocotools.
Range = tuple[float, float]
LARGEST = 1e10  # COCO's own end of the large areas
UNKNOWN = 1e11  # the measure of an object in an image that could not be read: in no group


def _below(edge: float) -> float:
    return float(np.nextafter(edge, 0.0))


GROUPINGS: dict[str, dict[str, Range]] = {
    "area": {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, LARGEST)},
    "share": {
        "below_1_8": (0.0, _below(1 / 8)),
        "1_8_to_1_3": (1 / 8, _below(1 / 3)),
        "1_3_to_2_3": (1 / 3, _below(2 / 3)),
        "above_2_3": (2 / 3, LARGEST),
    },
    "aspect": {"below_1.5": (0.0, _below(1.5)), "1.5_to_3": (1.5, _below(3.0)), "above_3": (3.0, LARGEST)},
}
# The groups as they stand in the names of figures, such as share/above_2_3, and the figures that each has a value of.
GROUPS = [f"{grouping}/{group}" for grouping, groups in GROUPINGS.items() for group in groups]
GROUP_FIGURES = ("objects", "map", "map50", "recall", "recall_displayed")


def measures(sides: np.ndarray, longest: np.ndarray | float) -> np.ndarray:
    """Measure boxes by each grouping, in the sequence of `GROUPINGS`.

    Args:
        sides: Height and width, or width and height, in pixels of the image as displayed: [n, 2].
        longest: The longer side of each box's image in pixels, 0 if it could not be read: [n] or one for all.

    Returns:
        Float64 [n, 3]: area in pixels; longer side of the box over longer side of the image; longer over shorter side.
    """
    sides, longest = np.asarray(sides, float).reshape(-1, 2), np.asarray(longest, float)
    longer, shorter = sides.max(axis=1), sides.min(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):  # boxes without width, images that were not read
        area = np.round(longer * shorter, 3)  # 32 x 32 pixels are so still after normalisation
        found = np.stack([area, longer / longest, longer / shorter], axis=1)
    found = np.minimum(np.nan_to_num(found, nan=1.0, posinf=LARGEST), LARGEST)
    return np.where((longest > 0.0)[..., None], found, UNKNOWN)


def memberships(boxes: np.ndarray, image_size: np.ndarray) -> np.ndarray:
    """Return which of `GROUPS` each box is in: bool [n, groups].

    Args:
        boxes: Normalised yxyx, [n, 4].
        image_size: Height and width in pixels, as displayed; 0 if the image could not be read.
    """
    sides = (np.asarray(boxes, float)[:, 2:] - np.asarray(boxes, float)[:, :2]) * image_size
    columns = []
    for values, groups in zip(measures(sides, np.max(image_size)).T, GROUPINGS.values(), strict=True):
        columns += [(low <= values) & (values <= high) for low, high in groups.values()]
    return np.stack(columns, axis=1)


class DetectionRecall:
    """Recall of all objects at an IoU of 0.5, and of what is shown at the model's display threshold (`displayed`).

    Recall is over all objects of all classes together, not a mean over classes. `difficult` objects and crowds do not
    count, nor do the detections matched to them.
    """

    def __init__(self, display_threshold: float | None = None):
        """Take the score from which detections are shown; without one only recall is measured."""
        self._threshold = display_threshold
        groups = 1 + len(GROUPS)  # all objects, then each group
        self._objects, self._found, self._displayed = (np.zeros(groups, int) for _ in range(3))
        self._images = self._shown = self._right = self._duplicates = 0

    def process(self, record: Record, answer: Answer) -> None:
        """Add an image and its detections, whose scores fall."""
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
        yield from self._each("objects", self._objects)
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

    def _each(self, figure: str, values: np.ndarray) -> Iterator[tuple[str, float]]:
        yield from zip([figure, *(f"{figure}/{name}" for name in GROUPS)], values.tolist(), strict=True)


def _shares(parts: np.ndarray, totals: np.ndarray) -> np.ndarray:
    return np.divide(parts, totals, out=np.full(len(parts), np.nan), where=totals > 0)


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
        """Add an image and its detections."""
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
