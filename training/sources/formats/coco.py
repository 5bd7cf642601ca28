"""COCO's files: a folder of images, and a JSON file with the boxes of a split."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from training.sources.checks import AnnotatedObject, Finding, Kind, ReportFinding, are_shares, make_record
from training.sources.file_source import Entry, FileSource
from training.sources.listing import Locator, best_locator, files_below, is_dir, is_file, normal_path
from training.sources.record import Record
from training.sources.splits import DEPTH, HOLE, by_split, fill_hole, folders_around, split_of
from training.sources.text import as_number, is_set, one_line, read_text

FORM = "coco:DIR, or coco:IMAGES_DIR:ANNOTATIONS.json"
# What is read of each object in the file; the rest, outlines above all, would take most of the memory.
KEPT = {"images", "annotations", "categories", "id", "name", "file_name", "width", "height", "supercategory"}
KEPT |= {"image_id", "category_id", "bbox", "iscrowd", "counts", "size"}
PLACE = "place"  # of an annotation in its file, from 0
MOST_PIXELS = 1 << 31  # of a side; no image has as many
OTHER_TASKS = re.compile(r"captions|keypoints|panoptic|stuff|image_info", re.IGNORECASE)  # COCO's, beside instances


class Split(NamedTuple):
    """A file's images, in its order, and its n objects, sorted by image."""

    images: list[dict]
    categories: dict[Any, dict]  # by rising id
    bounds: np.ndarray  # int [images + 1]: objects of image i are bounds[i] to bounds[i + 1]
    owners: list  # n ids of categories, of which there may be no category
    corners: np.ndarray  # float64 [n, 4], yxyx in pixels from 0; nan where there are none
    crowds: np.ndarray  # bool [n]
    places: np.ndarray  # int [n], in the file's list of annotations
    normalised: bool  # whether corners are shares of the images instead, against COCO's own rule
    findings: list[Finding]  # entries that are skipped


class CocoFiles(FileSource):
    """COCO's layout: a file of annotations and a folder of images for each split.

    Classes are the categories of all splits by rising id, but for one without objects that only groups others (as
    Roboflow writes it); an image's id is its file name. A crowd is `difficult`: not counted when missed, nor when
    found. An object without a box has that of its segmentation. Entries that can't be used are skipped, and reported
    when the records of their split begin: so is each of several images with one id, or with one file name and other
    objects, whose boxes nobody can tell apart. Images are found by `Locator`.

    Args:
        name: The SOURCE.
        places: The file of each split, and the folders where its images may be.
        report: Is told of what is wrong.

    Raises:
        ValueError: a folder or a file is missing, or the file is none of COCO's.
    """

    def __init__(self, name: str, places: dict[str, tuple[Path, Sequence[Path]]], report: ReportFinding):
        super().__init__(name, report)
        self._places = places
        self.splits = tuple(places)
        self._loaded, self._locator = cache(self._load), cache(self._make_locator)

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        found: dict[str, None] = {}  # in the order of their ids
        shared: dict[str, str] = {}
        groups: set[str] = set()
        used: set[str] = set()
        for split in self.splits:
            loaded = self._loaded(split)
            ids = defaultdict(list)
            for key, category in loaded.categories.items():
                ids[category["name"]].append(key)
                groups |= {one_line(category.get("supercategory", ""))} - {category["name"]}
            found |= dict.fromkeys(ids)
            shared |= {name: f"ids {', '.join(map(str, keys))}" for name, keys in ids.items() if len(keys) > 1}
            used |= {loaded.categories[key]["name"] for key in set(loaded.owners) & loaded.categories.keys()}
        self._findings += [Finding(Kind.SAME_NAME, name, detail) for name, detail in shared.items()]
        dead = [name for name in found if name in groups and name not in used] if used else []
        for name in dead:
            self._findings.append(Finding(Kind.GROUP, name, "other categories name it as their supercategory"))
        names = tuple(name for name in found if name not in dead)
        if not names:
            raise ValueError(f"expected categories in the annotations of {self.name}; there are none")
        return names

    def _list(self, split: str, report: ReportFinding) -> list[Entry]:
        loaded = self._loaded(split)
        for finding in loaded.findings:
            report(finding)
        by_name = defaultdict(list)
        for number, image in enumerate(loaded.images):
            by_name[normal_path(str(image["file_name"]))].append(number)
        entries = []
        for numbers in by_name.values():
            name = str(loaded.images[numbers[0]]["file_name"])
            if len({self._content(loaded, number) for number in numbers}) > 1:
                detail = (
                    f"{len(numbers)} images have this file name, and other objects: which are its own can't be told"
                )
                report(Finding(Kind.BAD_ANNOTATION, name, detail))
            else:
                entries += [Entry(name, number) for number in numbers]
        return entries

    def _content(self, loaded: Split, number: int) -> tuple:
        """Return an image's size and objects, in a form that can be compared."""
        these = slice(*loaded.bounds[number : number + 2])
        boxes = sorted(zip(map(str, loaded.owners[these]), loaded.corners[these].tolist(), strict=True))
        return (_size(loaded.images[number]), str(boxes))

    def _make_locator(self, split: str) -> Locator:
        stated = [str(image["file_name"]) for image in self._loaded(split).images]
        return best_locator(self._places[split][1], stated)

    def _read(self, split: str, entry: Entry, data: bytes) -> Record | None:
        loaded = self._loaded(split)
        these = slice(*loaded.bounds[entry.detail : entry.detail + 2])
        objects = []
        for owner, corners, crowd, place in zip(
            loaded.owners[these],
            loaded.corners[these].tolist(),
            loaded.crowds[these].tolist(),
            loaded.places[these],
            strict=True,
        ):
            category = loaded.categories.get(owner)
            label = category["name"] if category else f"category_id {owner}"
            where = f"annotations[{place}]"
            objects.append(AnnotatedObject(label, tuple(corners), crowd=crowd, where=where))
        stated = _size(loaded.images[entry.detail])
        return make_record(
            data, entry.name, objects, self._classes, self._report, stated=stated, normalised=loaded.normalised
        )

    def _load(self, split: str) -> Split:
        path = self._places[split][0]
        findings: list[Finding] = []
        try:
            content = json.loads(read_text(path), object_hook=_keep)
            if not isinstance(content, dict):
                raise TypeError(f"a {type(content).__name__}")
            images, ids = _sound_images(content["images"], path, findings.append)
            annotations = _sound_annotations(content.get("annotations", []), ids, path, findings.append)
            categories = sorted(
                content["categories"], key=lambda one: (isinstance(_id(one["id"]), str), _id(one["id"]))
            )
            places = {_id(image["id"]): number for number, image in enumerate(images)}
            by_id = {
                _id(one["id"]): {**one, "name": one_line(one["name"]) or f"category {one['id']}"}
                for one in categories
                if one.get("name") is not None
            }
            if len(by_id) < len(categories):
                raise ValueError("categories that share an id, or have no name")
            # -1 for the objects of skipped images, which go with them.
            owners = np.array([places.get(_id(one["image_id"]), -1) for one in annotations], int)
            indices = np.argsort(owners, kind="stable")
            corners = np.array([_corners(annotations[i].get("bbox")) for i in indices], float).reshape(-1, 4)
            return Split(
                images,
                by_id,
                np.searchsorted(owners[indices], np.arange(len(images) + 1)),
                [_id(annotations[i]["category_id"]) for i in indices],
                corners,
                np.array([is_set(annotations[i].get("iscrowd")) for i in indices], bool),
                np.array([annotations[i][PLACE] for i in indices], int),
                are_shares(corners),
                findings,
            )
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            if str(path) in str(error):
                raise
            got = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"expected images, annotations and categories in '{path}'; got {got}") from error


def open_coco(rest: str, report: ReportFinding) -> CocoFiles:
    """Open `DIR`, `ANNOTATIONS.json` or `IMAGES_DIR:ANNOTATIONS.json`.

    With both parts, one file is one split, named by the split that its name has in it, else "train"; with `{split}` in
    both, as in `train/{split}2017:annotations/instances_{split}2017.json`, every split that is there is one. With a
    folder alone, all files of annotations in it are splits by their own names or by their folders' (`split_of`), and
    their images are looked for in the folders around them.

    Raises:
        ValueError: as `CocoFiles`, or several files of one split.
    """
    name = f"coco:{rest}"
    images, _, annotations = rest.rpartition(":")
    if is_dir(Path(rest)):
        return CocoFiles(name, _found_in(Path(rest)), report)
    if not images and rest.lower().endswith(".json") and is_file(Path(rest)):
        path = Path(rest)
        split = split_of(path.stem)
        return CocoFiles(name, {split or "train": (path, folders_around(path, path.parent, split))}, report)
    if not images or not annotations:
        missing = "there is no such folder" if rest and ":" not in rest else "one part is missing"
        raise ValueError(f"expected {FORM}; got '{name}': {missing}")
    return CocoFiles(name, _places(images, annotations), report)


def _places(images: str, annotations: str) -> dict[str, tuple[Path, Sequence[Path]]]:
    """Return each split's file of annotations and folder of images."""
    if (HOLE in images) != (HOLE in annotations):
        raise ValueError(f"expected {HOLE} in both parts, or in none; got 'coco:{images}:{annotations}'")
    if HOLE not in images:
        places = {split_of(Path(annotations).stem) or "train": (Path(annotations), [Path(images)])}
    else:
        places = {
            split: (Path(annotations.replace(HOLE, word)), [Path(images.replace(HOLE, word))])
            for split, word in fill_hole(annotations).items()
        }
        if not places:
            raise ValueError(f"expected files of COCO annotations; '{annotations}' names none")
    for file, (folder,) in places.values():
        if not is_dir(folder) or not is_file(file):
            missing = f"no folder '{folder}'" if not is_dir(folder) else f"no file '{file}'"
            raise ValueError(f"expected {FORM}; there is {missing}")
    return places  # type: ignore[return-value]


def coco_files_in(folder: Path) -> list[Path]:
    """List the files of COCO's annotations in a folder and below; of COCO's own the instances alone."""
    files = [path for path in files_below(folder, (".json",), DEPTH) if _is_coco(path)]
    of_objects = [path for path in files if not OTHER_TASKS.search(path.stem)]
    return of_objects or files


def _found_in(folder: Path) -> dict[str, tuple[Path, Sequence[Path]]]:
    """Return the files of annotations in a folder by split, and the folders where their images may be."""
    files = coco_files_in(folder)
    if not files:
        raise ValueError(f"expected COCO's annotations in '{folder}', a JSON file with images and categories; got none")
    found = by_split(files, folder, "coco:IMAGES_DIR:ANNOTATIONS.json")
    return {split: (path, folders_around(path, folder, split)) for split, path in found.items()}


def _is_coco(path: Path) -> bool:
    """Return whether a JSON file has the words of COCO's annotations, without reading it as JSON."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    plain = content.replace(b"\0", b"") if b"\0" in content[:4] else content  # UTF-16
    return all(b'"%s"' % word in plain for word in (b"images", b"categories"))


def _keep(parts: dict) -> dict:
    """Keep what is read of an object; one without a box has that of its segmentation, and LVIS's images a file name."""
    if parts.get("coco_url") and not parts.get("file_name"):
        parts["file_name"] = parts["coco_url"]
    if "segmentation" in parts and not parts.get("bbox"):
        parts["bbox"] = _box_around(parts["segmentation"])
    return {key: value for key, value in parts.items() if key in KEPT}


def _box_around(segmentation: Any) -> list[float] | None:
    """Return x, y, width, height around polygons or run lengths; None where there are none that can be read."""
    try:
        if isinstance(segmentation, dict):
            from pycocotools import mask

            height, width = segmentation["size"]
            runs = segmentation
            if isinstance(segmentation["counts"], list):
                runs = mask.frPyObjects(segmentation, height, width)
            return [float(edge) for edge in mask.toBbox(runs)]
        polygons = segmentation if segmentation and isinstance(segmentation[0], list) else [segmentation]
        outlines = [np.asarray(polygon, float).reshape(-1, 2) for polygon in polygons]
        points = np.concatenate([outline for outline in outlines if len(outline) > 2])
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        return [left, top, right - left, bottom - top]
    except (ImportError, TypeError, ValueError, LookupError):
        return None


def _id(value: Any) -> Any:
    """Return an id as it can be compared: 3 for "3" and for 3.0."""
    number = as_number(value)
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _size(image: dict) -> tuple[float, float]:
    """Return an image's (width, height) as stated, 0 where it is not."""
    width, height = (as_number(image.get(key)) or 0 for key in ("width", "height"))
    return width, height  # type: ignore[return-value]


def _sound_images(images: object, file: Path, report: ReportFinding) -> tuple[list[dict], set]:
    """Return the images that can be used, and the ids of all; the others are reported."""
    if not isinstance(images, list):
        raise TypeError("no list of images")
    counts = Counter(_id(image["id"]) for image in images if not _lack(image, "id"))
    kept, wrong = [], ""
    for place, image in enumerate(images):
        wrong = _lack(image, "id", "file_name") or _wrong_size(image)
        if not wrong and (count := counts[_id(image["id"])]) > 1:
            wrong = f"{count} images have the id {image['id']!r}"
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
        elif _id(one["image_id"]) not in ids:
            report(Finding(Kind.MISSING_IMAGE, str(one["image_id"]), f"not among the images of {file}"))
        else:
            one[PLACE] = place
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
        value = as_number(image.get(key)) or 0
        if not (isinstance(value, int | float) and value < MOST_PIXELS):  # nan is not less
            return f"no number of pixels as '{key}': {value!r:.40}"
    return ""


def _corners(bbox: object) -> tuple[float, float, float, float]:
    """Turn x, y, width, height into ymin, xmin, ymax, xmax; nan where they are not four numbers."""
    try:
        x, y, width, height = map(float, () if isinstance(bbox, str) else bbox)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return (np.nan,) * 4
    return y, x, y + height, x + width
