"""A box that never moves: what a regressor has to beat before its error means anything."""

import logging

import numpy as np

from training.metrics import Answer, Guesses
from training.progress import progress
from training.sources.record import Record, Source

ENOUGH = 10_000  # boxes: their median moves no more; of ImageNet all would be hours
IMAGES = 50_000  # that are looked at for them

log = logging.getLogger(__name__)


def median_box(source: Source, split: str = "train", quiet: bool = False) -> np.ndarray | None:
    """Give the median of each edge over a split's boxes, normalised yxyx [4], from the first some ten thousand.

    None, with a warning, where the source has no such split or the images that were looked at have no box.
    """
    boxes: list[np.ndarray] = []
    if split in source.splits:
        for record in progress(source.records(split, IMAGES), f"boxes of {split}", quiet=quiet):
            boxes.extend(record.boxes[record.boxed])
            if len(boxes) >= ENOUGH:
                break
    if not boxes:
        log.warning("no row of a fixed box: %s has no boxes in a split '%s' to take it from", source.name, split)
        return None
    return np.median(boxes, axis=0)


class FixedBox:
    """Scores one box for every image: localization errors, had each guess of a model's this box."""

    def __init__(self, box: np.ndarray):
        """Take the box, normalised yxyx [4]."""
        self._box, self._metric = box, Guesses(kinds=("localization",))

    def process(self, record: Record, answer: Answer) -> None:
        """Add an image, with the classes of an answer of `localize`."""
        boxes = np.tile(self._box, (len(answer["detection_classes"]), 1))
        self._metric.process(record, {**answer, "detection_boxes": boxes})

    def process_right(self, record: Record) -> None:
        """Add an image, with the classes that are in it: what only a perfect classifier gets."""
        labels = np.unique(record.labels)
        self.process(record, {"num_detections": np.array(len(labels)), "detection_classes": labels + 1.0})

    def errors(self) -> dict[str, float]:
        """Give localization1_error and localization5_error, in 0..1.

        Raises:
            ValueError: no image with a box was added.
        """
        return dict(self._metric.evaluate())
