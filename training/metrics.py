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
from training.size_groups import GROUPINGS, UNKNOWN, group_names, measures
from training.sources.record import Record

Answer = dict[str, np.ndarray]
MOST = 100  # detections of an image that count, as in COCO


class Metric(Protocol):
    """`process` takes a record and its answer; `evaluate` yields the figures."""

    def process(self, record: Record, answer: Answer) -> None: ...

    def evaluate(self) -> Iterator[tuple[str, float]]: ...


class CocoDetection:
    """Mean average precision over IoU 0.5:0.95 and at 0.5, by pycocotools; of all objects and by size and shape.

    A group of `size_groups` is scored by COCO's rule for ranges of area: objects outside of it are ignored, and so are
    detections outside of it that match no object. An area is that of the box, for want of a mask.

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
        self._sizes = Rows(longest="i4")  # of each image
        self._truths = Rows(**places, difficult="?", crowd="?")
        self._found = Rows(**places, score="f4")

    def process(self, record: Record, answer: Answer) -> None:
        """Add an image and its detections; one that has a class without a box counts for nothing."""
        if not record.boxed.all():
            return
        self._images += 1
        size, count = answer["image_size"], int(answer["num_detections"])
        self._sizes.append(1, longest=np.max(size))
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
        """Yield map, map50, map75, each class's average precision at 0.5 as ap50/NAME, and those of each group.

        A group's are map/GROUPING/GROUP and map50/GROUPING/GROUP, such as map50/share/above_2_3: the mean over the
        classes that have objects in it. What has no objects is nan.

        Raises:
            ValueError: no object in the whole set, or none that counts.
        """
        truths, found = self._truths.table(), self._found.table()
        counting = np.unique(truths["label"][~truths["difficult"]])
        if not len(counting):
            raise ValueError(f"expected objects to score against; the {self._images} images have none")
        truths_of, found_of = (by_label(rows, len(self.class_names)) for rows in (truths, found))
        # Class by class, as pycocotools' own loop: what it makes of a detection takes a hundred times the memory.
        longest = self._sizes.table()["longest"]
        each = np.stack([_coco_precisions(truths_of[label], found_of[label], longest) for label in counting])
        yield "map", float(each[:, 0].mean())
        yield "map50", float(each[:, 0, 0].mean())
        yield "map75", float(each[:, 0, 5].mean())
        values = dict(zip(counting.tolist(), each[:, 0, 0].tolist(), strict=True))
        for label, name in enumerate(self.class_names):
            yield f"ap50/{name}", values.get(label, float("nan"))
        for number, name in enumerate(group_names(), start=1):
            having = each[each[:, number, 0] > -1, number]
            yield f"map/{name}", float(having.mean()) if len(having) else float("nan")
            yield f"map50/{name}", float(having[:, 0].mean()) if len(having) else float("nan")


def _coco_precisions(truths: np.ndarray, found: np.ndarray, longest: np.ndarray) -> np.ndarray:
    """Let pycocotools find a class's average precision, 100 detections an image.

    It knows ranges of area alone, so the other measures are given to it as areas. Where an object does not count, its
    area is beyond all ranges: a flag `ignore` would be overwritten.

    Returns:
        Float64 [1 + groups, 10 IoUs], of all objects and of each of `group_names()`; -1 where there is no object.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    sizes = [measures(rows["box"][:, 2:], longest[rows["image"] - 1]) for rows in (truths, found)]
    sizes[0][truths["difficult"]] = math.inf
    truths, found, kept = _joined(truths, found)
    sizes[1] = sizes[1][kept]
    images = [{"id": int(image)} for image in np.union1d(truths["image"], found["image"])]
    both = []
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        for rows, more in (
            (truths, {"iscrowd": truths["crowd"].astype(int).tolist()}),
            (found, {"score": found["score"].tolist()}),
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
        scoring.params.maxDets = [MOST]
        precisions = []
        for column, groups in enumerate(GROUPINGS.values()):
            for coco, values in zip(both, sizes, strict=True):
                for annotation, value in zip(coco.dataset["annotations"], values[:, column].tolist(), strict=True):
                    annotation["area"] = value
            every = [(0.0, UNKNOWN)] if column == 0 else []
            scoring.params.areaRng = [list(ends) for ends in (*every, *groups.values())]
            scoring.params.areaRngLbl = list(map(str, range(len(scoring.params.areaRng))))
            scoring.evaluate()
            scoring.accumulate()
            precisions.append(scoring.eval["precision"][:, :, 0, :, 0].mean(axis=1).T)
    return np.concatenate(precisions)


def _joined(truths: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join images without objects where they follow one another, as long as they have no more than `MOST` detections.

    Their detections match nothing in any image, and equal scores keep their sequence, so the figures stay the same.
    COCOeval takes 0.1 ms for an image, class and group: 40 s rather than 110 s for 2,000 images of 100 detections of
    40 classes.

    Returns:
        Objects and detections with other image numbers, and which detections these are: no more than `MOST` an image.
    """
    kept = np.lexsort((-found["score"], found["image"]))
    numbers = found["image"][kept]
    kept = kept[np.arange(len(kept)) - np.searchsorted(numbers, numbers) < MOST]
    truths, found = truths.copy(), found[kept]
    images, counts = np.unique(found["image"], return_counts=True)
    detections = dict(zip(images.tolist(), counts.tolist(), strict=True))
    with_objects = set(truths["image"].tolist())
    joined, number, room = {}, 0, 0
    for image in sorted(with_objects | detections.keys()):
        count = detections.get(image, 0)
        if image in with_objects or count > room:
            number, room = number + 1, MOST
        joined[image] = number
        room = 0 if image in with_objects else room - count
    for rows in (truths, found):
        rows["image"] = [joined[image] for image in rows["image"].tolist()]
    return truths, found, kept


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
