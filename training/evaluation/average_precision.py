"""Average precision by the rules of COCO, of Pascal VOC (2007, and 2010 onwards) and of ILSVRC's detection task.

COCO's is computed by pycocotools; the programs of the other two are in Matlab alone.
"""

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec

import numpy as np

from training.evaluation.metrics import (
    MOST,
    Answer,
    Matches,
    Rows,
    by_label,
    match_answer,
    match_detections,
    predicted_labels,
)
from training.evaluation.recall import GROUPINGS, GROUPS, UNKNOWN, measures
from training.sources.record import Record

Curve = tuple[np.ndarray, np.ndarray]  # precision and recall, best detection first
Area = Callable[[np.ndarray, np.ndarray], float]


class CocoDetection:
    """Mean average precision over IoU 0.5:0.95 and at 0.5, by pycocotools; of all objects and by size and shape.

    A group of `GROUPINGS` is scored by COCO's rule for ranges of area: objects outside of it are ignored, and so are
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
            raise ImportError("mAP needs pycocotools: pip install pycocotools")
        self.class_names = tuple(class_names)
        self._images = 0
        places = {"image": "i4", "label": "i4", "box": "4f8"}  # pixels, x, y, width, height
        self._sizes = Rows(longest="i4")  # of each image
        self._truths = Rows(**places, difficult="?", crowd="?")
        self._found = Rows(**places, score="f4")

    def process(self, record: Record, answer: Answer) -> None:
        """Add an image and its detections."""
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
            yield f"ap50/{name}", values.get(label, math.nan)
        for number, name in enumerate(GROUPS, start=1):
            having = each[each[:, number, 0] > -1, number]
            yield f"map/{name}", float(having.mean()) if len(having) else math.nan
            yield f"map50/{name}", float(having[:, 0].mean()) if len(having) else math.nan


def _coco_precisions(truths: np.ndarray, found: np.ndarray, longest: np.ndarray) -> np.ndarray:
    """Let pycocotools find a class's average precision, 100 detections an image.

    It knows ranges of area alone, so the other measures are given to it as areas. Where an object does not count, its
    area is beyond all ranges: a flag `ignore` would be overwritten.

    Returns:
        Float64 [1 + groups, 10 IoUs], of all objects and of each of `GROUPS`; -1 where there is no object.
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
        for rows, key, values in ((truths, "iscrowd", truths["crowd"].astype(int)), (found, "score", found["score"])):
            columns = zip(rows["image"].tolist(), rows["box"].tolist(), values.tolist(), strict=True)
            annotations = [
                {"id": number, "image_id": image, "category_id": 1, "bbox": box, key: value}
                for number, (image, box, value) in enumerate(columns, start=1)
            ]
            both.append(COCO())
            both[-1].dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1}]}
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
    joined, number, remaining = {}, 0, 0
    for image in sorted(with_objects | detections.keys()):
        count = detections.get(image, 0)
        if image in with_objects or count > remaining:
            number, remaining = number + 1, MOST
        joined[image] = number
        remaining = 0 if image in with_objects else remaining - count
    for rows in (truths, found):
        rows["image"] = [joined[image] for image in rows["image"].tolist()]
    return truths, found, kept


def _xywh(boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Turn normalised yxyx [n, 4] into pixels, x, y, width and height, of an image of (height, width)."""
    edges = np.asarray(boxes, float) * np.tile(np.asarray(size, float), 2)
    return np.concatenate([edges[:, 1::-1], (edges[:, 2:] - edges[:, :2])[:, ::-1]], axis=1)


def eleven_points(precision: np.ndarray, recall: np.ndarray) -> float:
    """Average, over the recalls 0, 0.1 ... 1, the best precision at that recall or beyond (VOC 2007)."""
    levels = np.linspace(0.0, 1.0, 11)
    # As the development kit compares them: 0.1 * 3 is above 0.3 in floating point.
    reached = recall[None] >= levels[:, None] - 1e-12
    return float(np.where(reached, precision, 0.0).max(axis=1, initial=0.0).mean())


def area_under(precision: np.ndarray, recall: np.ndarray) -> float:
    """Integrate the best precision at each recall or beyond (VOC 2010 onwards, and ILSVRC)."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope).sum())


class _RankedDetections:
    """Each class's objects, and its detections with their scores and whether they are right."""

    def __init__(self, class_names: Sequence[str]):
        self._names = tuple(class_names)
        self._found = Rows(label="i4", score="f8", right="?")
        self._objects = np.zeros(len(self._names), int)

    def _add(self, record: Record, answer: Answer, ignored: np.ndarray, matches: Matches) -> None:
        """Add an image's objects, but for the ignored ones bool [m], and its detections, but for those on them."""
        np.add.at(self._objects, record.labels[~ignored], 1)
        labels, counted = predicted_labels(answer), ~matches.ignored
        scores = answer["detection_scores"][: len(labels)]
        self._found.append(
            int(counted.sum()), label=labels[counted], score=scores[counted], right=matches.right[counted]
        )

    def curves(self) -> list[Curve | None]:
        """Return each class's precision and recall after each detection, best first; None without objects."""
        curves: list[Curve | None] = []
        for found, objects in zip(by_label(self._found.table(), len(self._names)), self._objects, strict=True):
            true = np.cumsum(found["right"][np.argsort(-found["score"], kind="stable")])
            curves.append((true / np.arange(1, len(true) + 1), true / objects) if objects else None)
        return curves


class VocDetection(_RankedDetections):
    """Mean average precision as Pascal VOC's development kit has it: eleven points (2007) and area (2010 onwards).

    A detection belongs to the object of its class that it overlaps most: right from an IoU of 0.5, once; a second one
    is wrong. Those that belong to a `difficult` object count for nothing, nor does it count as an object.
    """

    def process(self, record: Record, answer: Answer) -> None:
        """Add an image and its detections, whose scores fall."""
        self._add(record, answer, record.difficult, match_answer(record, answer, rule="voc"))

    def evaluate(self) -> Iterator[tuple[str, float]]:
        """Yield voc07_map and voc_map, then each class's voc_ap/NAME by area (nan without objects)."""
        curves = self.curves()
        yield "voc07_map", _mean_area(curves, eleven_points)
        yield "voc_map", _mean_area(curves, area_under)
        for name, curve in zip(self._names, curves, strict=True):
            yield f"voc_ap/{name}", area_under(*curve) if curve else math.nan


class IlsvrcDetection(_RankedDetections):
    """Mean average precision as ILSVRC's detection task has it.

    A detection is right where it overlaps an object of its class that no better one has found, by an IoU of 0.5; by
    less where the object is so small that ten pixels more a side would: w h / ((w + 10) (h + 10)).
    """

    def process(self, record: Record, answer: Answer) -> None:
        """Add an image and its detections, whose scores fall."""
        labels, sides = predicted_labels(answer), (record.boxes[:, 2:] - record.boxes[:, :2]) * answer["image_size"]
        matches = match_detections(
            answer["detection_boxes"][: len(labels)],
            answer["detection_scores"][: len(labels)],
            labels,
            record.boxes,
            record.labels,
            record.crowd,
            np.minimum(0.5, sides.prod(axis=1) / (sides + 10.0).prod(axis=1)),
            crowd=record.crowd,
        )
        self._add(record, answer, record.crowd, matches)

    def evaluate(self) -> Iterator[tuple[str, float]]:
        """Yield ilsvrc_map."""
        yield "ilsvrc_map", _mean_area(self.curves(), area_under)


def _mean_area(curves: Sequence[Curve | None], area: Area) -> float:
    """Average over the classes that have objects; nan where none has."""
    values = [area(*curve) for curve in curves if curve]
    return float(np.mean(values)) if values else math.nan
