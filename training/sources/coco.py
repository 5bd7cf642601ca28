"""COCO's files: a folder of images, and a JSON file with the boxes of a split."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache, cached_property
from glob import escape, glob
from pathlib import Path
from typing import NamedTuple

import numpy as np

from training.sources.checks import Finding, Kind, ReportFinding, Thing, make_record, read_file
from training.sources.record import Record, check_split, mixed

HOLE = "{split}"
SPLITS = ("train", "val", "test")
# What is read of each thing in the file; the rest, outlines above all, would take most of the memory.
KEPT = {"images", "annotations", "categories", "id", "name", "file_name", "width", "height"}
KEPT |= {"image_id", "category_id", "bbox", "iscrowd"}
MOST_PIXELS = 1 << 31  # of a side; no image has as many


class Split(NamedTuple):
    """A file's images, in its order, and its n objects, sorted by image."""

    images: list[dict]
    names: tuple[str, ...]  # of the categories, by rising id
    bounds: np.ndarray  # int [images + 1]: objects of image i are bounds[i] to bounds[i + 1]
    labels: np.ndarray  # int [n], places in `names`; -1 where there is no such category
    corners: np.ndarray  # float64 [n, 4], yxyx in pixels from 0; nan where there are none
    crowds: np.ndarray  # bool [n]
    findings: list[Finding]  # entries that are skipped


class CocoFiles:
    """COCO's layout: `IMAGES_DIR:ANNOTATIONS.json`.

    One file is one split, named by the first of `SPLITS` that its name has in it, else "train". With `{split}` in
    both parts, as in `train/{split}2017:annotations/instances_{split}2017.json`, every split that is there is one.
    Classes are the categories of all splits by rising id; an image's id is its file name. A crowd is `difficult`: not
    counted when missed, nor when found. Entries that can't be used are skipped, and reported when the records of their
    split begin: so is each of several images with one id, whose boxes nobody can tell apart. The order is fixed and
    mixed.

    Raises:
        ValueError: a folder or a file is missing, or the file is none of COCO's.
    """

    boxed = True

    def __init__(self, images: str, annotations: str, report: ReportFinding):
        self.name, self._report = f"coco:{images}:{annotations}", report
        self._places = _places(images, annotations)
        self.splits = tuple(self._places)
        self._loaded = cache(self._load)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of their labels."""
        names = tuple(dict.fromkeys(name for split in self.splits for name in self._loaded(split).names))
        if not names:
            raise ValueError(f"expected categories in the annotations of {self.name}; there are none")
        return names

    def records(self, split: str, limit: int | None = None) -> Iterator[Record]:
        """Yield the split's records, the first `limit` of them."""
        check_split(self, split)
        loaded = self._loaded(split)
        for finding in loaded.findings:
            self._report(finding)
        classes = {name: label for label, name in enumerate(self.class_names)}
        for number in mixed(range(len(loaded.images)))[:limit]:
            image = loaded.images[number]
            name = str(image["file_name"])
            data = read_file(self._places[split][0] / name, name, self._report)
            if data is not None:
                these = slice(*loaded.bounds[number : number + 2])
                things = [
                    Thing(loaded.names[label] if label >= 0 else "", tuple(corners), difficult=crowd, crowd=crowd)
                    for label, corners, crowd in zip(
                        loaded.labels[these], loaded.corners[these].tolist(), loaded.crowds[these], strict=True
                    )
                ]
                stated = (image.get("width") or 0, image.get("height") or 0)
                record = make_record(data, name, things, classes, self._report, stated=stated)
                if record is not None:
                    yield record

    def _load(self, split: str) -> Split:
        path = self._places[split][1]
        findings: list[Finding] = []
        try:
            with path.open() as file:
                content = json.load(file, object_hook=lambda parts: {k: v for k, v in parts.items() if k in KEPT})
            images, ids = _sound_images(content["images"], path, findings.append)
            annotations = _sound_annotations(content.get("annotations", []), ids, path, findings.append)
            categories = sorted(content["categories"], key=lambda category: category["id"])
            places = {image["id"]: number for number, image in enumerate(images)}
            labels = {category["id"]: label for label, category in enumerate(categories)}
            if len(labels) < len(categories):
                raise ValueError("categories that share an id")
            # -1 for the objects of skipped images, which go with them.
            owners = np.array([places.get(one["image_id"], -1) for one in annotations], int)
            indices = np.argsort(owners, kind="stable")
            bounds = np.searchsorted(owners[indices], np.arange(len(images) + 1))
            return Split(
                images,
                tuple(str(category["name"]) for category in categories),
                bounds,
                np.array([labels.get(annotations[i]["category_id"], -1) for i in indices], int),
                np.array([_corners(annotations[i].get("bbox")) for i in indices], float).reshape(-1, 4),
                np.array([bool(annotations[i].get("iscrowd")) for i in indices], bool),
                findings,
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"expected images, annotations and categories in '{path}'; got {error!r}") from error


def open_coco(rest: str, report: ReportFinding) -> CocoFiles:
    """Open `IMAGES_DIR:ANNOTATIONS.json`.

    Raises:
        ValueError: as `CocoFiles`, or one part alone.
    """
    images, _, annotations = rest.rpartition(":")
    if not images or not annotations:
        raise ValueError(f"expected coco:IMAGES_DIR:ANNOTATIONS.json; got 'coco:{rest}'")
    return CocoFiles(images, annotations, report)


def _places(images: str, annotations: str) -> dict[str, tuple[Path, Path]]:
    """Return each split's folder of images and file of annotations."""
    if (HOLE in images) != (HOLE in annotations):
        raise ValueError(f"expected {HOLE} in both parts, or in none; got 'coco:{images}:{annotations}'")
    if HOLE not in images:
        split = next((split for split in SPLITS if split in Path(annotations).stem.lower()), "train")
        places = {split: (Path(images), Path(annotations))}
    else:
        pattern = re.escape(annotations).replace(re.escape(HOLE), "(?P<split>[^/]+)", 1)
        pattern = pattern.replace(re.escape(HOLE), "(?P=split)")
        found = (re.fullmatch(pattern, path) for path in sorted(glob(escape(annotations).replace(HOLE, "*"))))
        splits = [match["split"] for match in found if match]
        places = {
            split: (Path(images.replace(HOLE, split)), Path(annotations.replace(HOLE, split))) for split in splits
        }
        if not places:
            raise ValueError(f"expected files of COCO annotations; '{annotations}' names none")
    for folder, file in places.values():
        if not folder.is_dir() or not file.is_file():
            missing = f"no folder '{folder}'" if not folder.is_dir() else f"no file '{file}'"
            raise ValueError(f"expected coco:IMAGES_DIR:ANNOTATIONS.json; there is {missing}")
    return places


def _sound_images(images: object, file: Path, report: ReportFinding) -> tuple[list[dict], set]:
    """Return the images that can be used, and the ids of all; the others are reported."""
    if not isinstance(images, list):
        raise TypeError("no list of images")
    counts = Counter(image["id"] for image in images if not _lack(image, "id"))
    kept, wrong = [], ""
    for place, image in enumerate(images):
        wrong = _lack(image, "id", "file_name") or _wrong_size(image)
        if not wrong and counts[image["id"]] > 1:
            wrong = f"{counts[image['id']]} images have the id {image['id']!r}"
        if wrong:
            name = f"images[{place}]" if _lack(image, "file_name") else str(image["file_name"])
            report(Finding(Kind.BAD_ANNOTATION, name, f"{file}: {wrong}"))
        else:
            kept.append(image)
    if images and not kept:
        raise ValueError(f"no image that can be used: {wrong}")
    return kept, set(counts)


def _sound_annotations(annotations: object, ids: set, file: Path, report: ReportFinding) -> list[dict]:
    """Return the annotations that have a category and one of the images' `ids`; the others are reported."""
    if not isinstance(annotations, list):
        raise TypeError("no list of annotations")
    kept = []
    for place, one in enumerate(annotations):
        if wrong := _lack(one, "image_id", "category_id"):
            report(Finding(Kind.BAD_ANNOTATION, f"annotations[{place}]", f"{file}: {wrong}"))
        elif one["image_id"] not in ids:
            report(Finding(Kind.MISSING_IMAGE, str(one["image_id"]), f"not among the images of {file}"))
        else:
            kept.append(one)
    return kept


def _lack(entry: object, *keys: str) -> str:
    """Say which of its ids and names an entry lacks; "" where it has all."""
    for key in keys:
        value = entry.get(key) if isinstance(entry, dict) else None
        if not isinstance(value, int | float | str) or value == "":
            return f"no number or name as '{key}'"
    return ""


def _wrong_size(image: dict) -> str:
    """Say what is wrong with an image's width or height, which may be left out; "" where nothing is."""
    for key in ("width", "height"):
        value = image.get(key) or 0
        if not (isinstance(value, int | float) and value < MOST_PIXELS):  # nan is not less
            return f"no number of pixels as '{key}': {value!r:.40}"
    return ""


def _corners(bbox: object) -> tuple[float, float, float, float]:
    """Turn x, y, width, height into ymin, xmin, ymax, xmax; nan where they are not four numbers."""
    try:
        x, y, width, height = map(float, bbox)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return (np.nan,) * 4
    return y, x, y + height, x + width
