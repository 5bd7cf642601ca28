"""What the field quotes: COCO's mAP by pycocotools, ILSVRC's classification and localization errors.

A metric is fed one image at a time and yields (name, value) pairs at the end. Answers are the contract's outputs,
one image's rows of them.
"""

import contextlib
import io
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Protocol

import numpy as np

from training.detection_matching import box_iou
from training.rows import Rows, by_label
from training.sources.record import Record

Answer = dict[str, np.ndarray]


class Metric(Protocol):
    """`process` takes a record and its answer; `evaluate` yields the figures."""

    def process(self, record: Record, answer: Answer) -> None: ...

    def evaluate(self) -> Iterator[tuple[str, float]]: ...


class CocoDetection:
    """Mean average precision over IoU 0.5:0.95 and at 0.5, by pycocotools.

    A `crowd` is what it is in COCO's own files: it excuses any number of detections that lie in it. VOC's `difficult`
    objects are ignored likewise, but each excuses one detection, by IoU.
    """

    def __init__(self, class_names: Sequence[str]):
        """Start from nothing.

        Raises:
            ImportError: pycocotools is not there.
        """
        if find_spec("pycocotools") is None:  # said before hours of inference
            raise ImportError("mAP needs pycocotools: pip install 'overfeat-tf[eval]'")
        self.class_names = tuple(class_names)
        self._images = 0
        places = {"image": "i4", "label": "i4", "box": "4f8"}  # pixels, x, y, width, height
        self._truths = Rows(**places, difficult="?", crowd="?")
        self._found = Rows(**places, score="f4")

    def process(self, record: Record, answer: Answer) -> None:
        """Add an image and its detections; one that has a class without a box counts for nothing."""
        if not record.boxed.all():
            return
        self._images += 1
        size, count = answer["image_size"], int(answer["num_detections"])
        self._truths.append(
            len(record.labels),
            image=self._images,
            label=record.labels,
            box=_xywh(record.boxes, size),
            difficult=record.difficult,
            crowd=record.crowd,
        )
        self._found.append(
            count,
            image=self._images,
            label=answer["detection_classes"][:count].astype(int) - 1,
            box=_xywh(answer["detection_boxes"][:count], size),
            score=answer["detection_scores"][:count],
        )

    def evaluate(self) -> Iterator[tuple[str, float]]:
        """Yield map, map50, map75, and each class's average precision at 0.5 as ap50/NAME (nan without objects).

        Raises:
            ValueError: no object in the whole set, or none that counts.
        """
        truths, found = self._truths.table(), self._found.table()
        counting = np.unique(truths["label"][~truths["difficult"]])
        if not len(counting):
            raise ValueError(f"expected objects to score against; the {self._images} images have none")
        truths_of, found_of = (by_label(rows, len(self.class_names)) for rows in (truths, found))
        # Class by class, as pycocotools' own loop: what it makes of a detection takes a hundred times the memory.
        each = np.stack([_coco_precision(truths_of[label], found_of[label]) for label in counting])
        yield "map", float(each.mean())
        yield "map50", float(each[:, 0].mean())
        yield "map75", float(each[:, 5].mean())
        values = dict(zip(counting.tolist(), each[:, 0].mean(axis=1).tolist(), strict=True))
        for label, name in enumerate(self.class_names):
            yield f"ap50/{name}", values.get(label, float("nan"))


def _coco_precision(truths: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Let pycocotools find a class's precision [10 IoUs, 101 recalls], 100 detections an image."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # Beyond all ranges of sizes: how COCOeval ignores an object (it overwrites a flag `ignore`).
    areas = np.where(truths["difficult"], math.inf, truths["box"][:, 2:].prod(axis=1))
    images = [{"id": int(image)} for image in np.union1d(truths["image"], found["image"])]
    both = []
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        for rows, more in (
            (truths, {"area": areas.tolist(), "iscrowd": truths["crowd"].astype(int).tolist()}),
            (found, {"area": found["box"][:, 2:].prod(axis=1).tolist(), "score": found["score"].tolist()}),
        ):
            columns = {"id": range(1, len(rows) + 1), "image_id": rows["image"].tolist(), "bbox": rows["box"].tolist()}
            columns |= more
            listed = [
                dict(zip(columns, values, strict=True), category_id=1) for values in zip(*columns.values(), strict=True)
            ]
            both.append(COCO())
            both[-1].dataset = {"images": images, "annotations": listed, "categories": [{"id": 1}]}
            both[-1].createIndex()
        scoring = COCOeval(*both, "bbox")
        scoring.params.areaRng, scoring.params.areaRngLbl, scoring.params.maxDets = [[0, 1e10]], ["all"], [100]
        scoring.evaluate()
        scoring.accumulate()
    return scoring.eval["precision"][:, :, 0, 0, 0]


class Guesses:
    """ILSVRC's errors over images with objects: top-1 and top-5 classification, and localization.

    A guess is right when its class is one of the image's; for localization, when its box also has an IoU of at
    least 0.5 with an object of that class. Answers are those of `localize`, best guess first.
    """

    KINDS = ("top", "localization")

    def __init__(self, class_names: Sequence[str] = (), kinds: Sequence[str] = KINDS):
        """Choose the kinds of error; the class names are of no use."""
        self._kinds = tuple(kinds)
        self._images: Counter[str] = Counter()
        self._right: Counter[str] = Counter()

    def process(self, record: Record, answer: Answer) -> None:
        """Add an image and its guesses; one without objects counts for nothing, without boxes not for localization."""
        if len(record.labels) == 0:
            return
        self._images["objects"] += 1
        for kind in self._kinds:
            if kind == "localization" and not record.boxed.all():
                continue
            right = (named if kind == "top" else placed)(record, answer)
            self._images[kind] += 1
            for guesses in (1, 5):
                self._right[f"{kind}{guesses}"] += bool(right[:guesses].any())

    def evaluate(self) -> Iterator[tuple[str, float]]:
        """Yield each error, in 0..1; of several kinds without localization's where no image has boxes.

        Raises:
            ValueError: no image with an object, or only localization asked for and no image with boxes.
        """
        images = self._images["objects"]
        if not images:
            raise ValueError("expected images with objects to score against; there are none")
        if not any(self._images[kind] for kind in self._kinds):
            raise ValueError(f"expected boxes to score against; the {images} images with objects have classes alone")
        for kind in (kind for kind in self._kinds if self._images[kind]):
            for guesses in (1, 5):
                yield f"{kind}{guesses}_error", 1.0 - self._right[f"{kind}{guesses}"] / self._images[kind]


def guessed(answer: Answer) -> np.ndarray:
    """Give the labels that an image was given, from 0, best first: int [n]."""
    return answer["detection_classes"][: int(answer["num_detections"])].astype(int) - 1


def named(record: Record, answer: Answer) -> np.ndarray:
    """Tell of each guess whether its class is one of the image's: bool [n]."""
    return np.isin(guessed(answer), record.labels)


def placed(record: Record, answer: Answer) -> np.ndarray:
    """Tell of each guess whether its box has an IoU of at least 0.5 with an object of its class: bool [n]."""
    # Not `match_detections`: ILSVRC lets several guesses name one object.
    labels = guessed(answer)
    overlaps = box_iou(answer["detection_boxes"][: len(labels)], record.boxes)
    return ((labels[:, None] == record.labels) & (overlaps >= 0.5)).any(axis=1)


def _xywh(boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Turn normalised yxyx [n, 4] into pixels, x, y, width and height, of an image of (height, width)."""
    edges = np.asarray(boxes, float) * np.tile(np.asarray(size, float), 2)
    return np.concatenate([edges[:, 1::-1], (edges[:, 2:] - edges[:, :2])[:, ::-1]], axis=1)
