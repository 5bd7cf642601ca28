"""What the field quotes: COCO's mAP by pycocotools, ILSVRC's classification and localization errors.

A metric is fed one image at a time and yields (name, value) pairs at the end. Answers are the contract's outputs,
one image's rows of them.
"""

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from training.sources.record import Record

Answer = dict[str, np.ndarray]


class Metric(Protocol):
    """`process` takes a record and its answer; `evaluate` yields the figures."""

    def process(self, record: Record, answer: Answer) -> None: ...

    def evaluate(self) -> Iterator[tuple[str, float]]: ...


class CocoDetection:
    """Mean average precision over IoU 0.5:0.95 and at 0.5, by pycocotools; VOC's `difficult` objects are ignored."""

    def __init__(self, class_names: Sequence[str]):
        self.class_names = tuple(class_names)
        self._images: list[dict] = []
        self._truths: list[dict] = []
        self._found: list[list[float]] = []

    def process(self, record: Record, answer: Answer) -> None:
        """Add an image and its detections; one that has a class without a box counts for nothing."""
        if not record.boxed.all():
            return
        image = len(self._images) + 1
        height, width = (float(side) for side in answer["image_size"])
        self._images.append({"id": image, "height": height, "width": width})
        for box, label, difficult in zip(record.boxes, record.labels, record.difficult, strict=True):
            placed = _xywh(box, height, width)
            self._truths.append(
                {
                    "id": len(self._truths) + 1,
                    "image_id": image,
                    "category_id": int(label) + 1,
                    "bbox": placed,
                    # Beyond all ranges of sizes: how COCOeval ignores an object (it overwrites a flag `ignore`).
                    "area": math.inf if difficult else placed[2] * placed[3],
                    "iscrowd": 0,
                }
            )
        for i in range(int(answer["num_detections"])):
            placed = _xywh(answer["detection_boxes"][i], height, width)
            score, label = float(answer["detection_scores"][i]), float(answer["detection_classes"][i])
            self._found.append([image, *placed, score, label])

    def evaluate(self) -> Iterator[tuple[str, float]]:
        """Yield map, map50, map75, and each class's average precision at 0.5 as ap50/NAME (nan without objects).

        Raises:
            ImportError: pycocotools is not there.
            ValueError: no object in the whole set, or none that counts.
        """
        try:
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval
        except ImportError as error:
            raise ImportError("mAP needs pycocotools: pip install 'overfeat-tf[eval]'") from error
        if not any(math.isfinite(truth["area"]) for truth in self._truths):
            raise ValueError(f"expected objects to score against; the {len(self._images)} images have none")
        categories = [{"id": i, "name": name} for i, name in enumerate(self.class_names, start=1)]
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            truth = COCO()
            truth.dataset = {"info": {}, "images": self._images, "annotations": self._truths, "categories": categories}
            truth.createIndex()
            found = truth.loadRes(np.array(self._found)) if self._found else COCO()
            if not self._found:
                found.dataset = {**truth.dataset, "annotations": []}
                found.createIndex()
            scoring = COCOeval(truth, found, "bbox")
            scoring.evaluate()
            scoring.accumulate()
            scoring.summarize()
        yield from zip(("map", "map50", "map75"), (max(float(value), 0.0) for value in scoring.stats[:3]), strict=True)
        precision = scoring.eval["precision"][0, :, :, 0, 2]  # IoU 0.5, all sizes, 100 detections: [recall, class]
        for name, values in zip(self.class_names, precision.T, strict=True):
            yield f"ap50/{name}", float(values.mean()) if (values >= 0).all() else float("nan")


class Guesses:
    """ILSVRC's errors over images with objects: top-1 and top-5 classification, and localization.

    A guess is right when its class is one of the image's; for localization, when its box also has an IoU of at
    least 0.5 with an object of that class. Answers are those of `localize`, best guess first.
    """

    def __init__(self) -> None:
        self._right: dict[str, list[bool]] = {name: [] for name in ("top1", "top5", "localization1", "localization5")}

    def process(self, record: Record, answer: Answer) -> None:
        """Add an image and its guesses; one without objects counts for nothing, without boxes not for localization."""
        if len(record.labels) == 0:
            return
        count = int(answer["num_detections"])
        labels = answer["detection_classes"][:count].astype(int) - 1
        named = [label in record.labels for label in labels]
        placed = [
            bool((iou(box, record.boxes[record.labels == label]) >= 0.5).any())
            for box, label in zip(answer["detection_boxes"][:count], labels, strict=True)
        ]
        for guesses in (1, 5):
            self._right[f"top{guesses}"].append(any(named[:guesses]))
            if record.boxed.all():
                self._right[f"localization{guesses}"].append(any(placed[:guesses]))

    def evaluate(self) -> Iterator[tuple[str, float]]:
        """Yield each error, in 0..1; without the localization errors where no image has boxes.

        Raises:
            ValueError: no image with an object.
        """
        if not self._right["top1"]:
            raise ValueError("expected images with objects to score against; there are none")
        for name, right in self._right.items():
            if right:
                yield f"{name}_error", 1.0 - float(np.mean(right))


def iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return intersection over union of one box [4] and others [n, 4], yxyx, in numpy."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1) + np.prod(box[2:] - box[:2])
    return shared / np.maximum(areas - shared, 1e-12)


def _xywh(box: np.ndarray, height: float, width: float) -> list[float]:
    ymin, xmin, ymax, xmax = (float(edge) for edge in box)
    return [xmin * width, ymin * height, (xmax - xmin) * width, (ymax - ymin) * height]
