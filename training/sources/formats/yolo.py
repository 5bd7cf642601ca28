"""YOLO's labels, a text file an image, as Ultralytics, Roboflow, CVAT and Label Studio write them."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from training.sources.checks import AnnotatedObject, Finding, Kind, ReportFinding, make_record
from training.sources.file_source import Entry, FileSource
from training.sources.listing import Locator, files_below, images_below, is_dir, is_file, is_junk, printable
from training.sources.record import Record
from training.sources.splits import DEPTH
from training.sources.text import ContentError, one_line, read_head, read_lines, read_text

# The keys of the splits; the second are in files that people write.
KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
EDGE = 0.01  # that a coordinate may lie beyond 0 to 1, as in Ultralytics' check
FAR = 1.0  # the same for points of an outline, which may be of an object at the edge


class YoloFiles(FileSource):
    """A `data.yaml` of Ultralytics' layout, or the `obj.data` of Darknet's; a folder with one of them does too.

    It names the classes (`names`, a list or a dictionary), and for `train`, `val` and `test` a folder of images, a file
    that lists them, or a list of either; paths start from `path`, or from the file's own folder. The label file of
    `images/**/NAME.jpg` is `labels/**/NAME.txt`, or lies beside the image. A line of it is a box "class cx cy w h" or
    an outline "class x1 y1 x2 y2 x3 y3 ...", which gives the box around it, in shares of the image as displayed. With
    `kpt_shape`, key points follow a box. An image without a label file shows no object.

    Raises:
        ValueError: no such file, no classes, or a split whose images are nowhere.
    """

    def __init__(self, path: Path, report: ReportFinding):
        super().__init__(f"yolo:{path}", report)
        self._file = _file_in(path) if is_dir(path) else path
        self._content = _read_content(self._file)
        self.class_names = tuple(self._names())
        stated = {
            split: next((self._content[k] for k in keys if self._content.get(k)), None) for split, keys in KEYS.items()
        }
        self._places: dict[str, list[Path]] = {}
        missing = []
        for split, value in stated.items():
            values = value if isinstance(value, list) else [value] if value else []
            found = [self._place(str(each)) for each in values]
            if found and all(found):
                self._places[split] = [place for place in found if place]
            elif value:
                kind = Kind.NO_SPLIT if split == "test" else Kind.NOT_TAKEN  # Roboflow lists one in any case
                missing.append(Finding(kind, split, f"no folder or list '{value}' from '{self._file}'"))
        if not self._places:
            wrong = missing[0].detail if missing else f"'{self._file}' has none of them"
            raise ContentError(f"expected the images of train, val or test; {wrong}")
        if missing and missing[0].name == "train":
            raise ContentError(f"expected the images of train; {missing[0].detail}")
        self._findings += missing
        self.splits = tuple(self._places)

    def _names(self) -> Iterator[str]:
        """Yield the classes by their numbers, and note contradictions."""
        names, count = self._content.get("names"), self._content.get("nc")
        if isinstance(names, Mapping):
            try:
                by_number = {int(key): name for key, name in names.items()}
            except (TypeError, ValueError):
                raise ContentError(f"expected numbers as the keys of names in '{self._file}'; got {names}") from None
            names = [by_number.get(number, f"class {number}") for number in range(max(by_number, default=-1) + 1)]
        elif names is None and isinstance(count, int):
            names = [f"class {number}" for number in range(count)]
        if not isinstance(names, Sequence) or isinstance(names, str) or not names:
            raise ContentError(f"expected the classes as 'names' in '{self._file}'; got {names!r}")
        if count is not None and str(count) != str(len(names)):
            detail = f"nc is {count}, names are {len(names)}"
            self._findings.append(Finding(Kind.CLASS_LIST, self._file.name, detail))
        seen: set[str] = set()
        for number, name in enumerate(one_line(name) or f"class {number}" for number, name in enumerate(names)):
            if name in seen:
                self._findings.append(Finding(Kind.CLASS_LIST, name, f"the name of several classes, of {number} too"))
                name = f"{name} ({number})"
            seen.add(name)
            yield name

    def _place(self, stated: str) -> Path | None:
        """Return the folder or the list that the file names, wherever it was when the file was written."""
        stated = stated.replace("\\", "/")
        own, root = self._file.parent, str(self._content.get("path") or "").replace("\\", "/")
        roots = list(dict.fromkeys([own / root, *([Path(root)] if root else []), own]))
        forms = [stated, stated.removeprefix("../")]  # Roboflow's begin with it
        parts = Path(stated).parts
        most = len(parts) if stated.endswith(".txt") else len(parts) - 1  # a folder "images" alone may be another's
        forms += ["/".join(parts[first:]) for first in range(1, most)]  # of another machine
        for form in dict.fromkeys(forms):
            for place in (folder / form for folder in roots):
                if is_dir(place) or is_file(place):
                    return place
        return None

    def _list(self, split: str, report: ReportFinding) -> list[Entry]:
        images: list[Path] = []
        for place in self._places[split]:
            if is_dir(place):
                images += [place / path for path in images_below(place, "", report)]
            else:
                images += self._listed_in(place, report)
        base = Path(os.path.abspath(self._file.parent))
        entries = [Entry(_relative(Path(os.path.abspath(path)), base), path) for path in images]
        labels = {path: label for path in images if (label := _label_of(path)) is not None}
        if images and not labels:
            detail = f"none of {len(images)} images has a label file: labels/{images[0].stem}.txt or beside it"
            report(Finding(Kind.MISSING_ANNOTATION, split, detail))
        owners: dict[Path, str] = {}
        for entry in entries:
            if (label := labels.get(entry.detail)) and (other := owners.setdefault(label, entry.name)) != entry.name:
                report(Finding(Kind.DUPLICATE, entry.name, f"has the label file of {other}: {label}"))
        if all(is_dir(place) for places in self._places.values() for place in places):  # else labels may be another's
            known = {label.stem for label in labels.values()}
            for path in (path for folder in sorted({p.parent for p in labels.values()}) for path in _labels_in(folder)):
                if path.stem not in known:
                    detail = f"labels without an image: {printable(str(path))}"
                    report(Finding(Kind.MISSING_IMAGE, printable(path.stem), detail))
        return entries

    def _listed_in(self, path: Path, report: ReportFinding) -> list[Path]:
        """Return the images that a file lists, one a line."""
        lines = read_lines(path)
        root = self._file.parent / str(self._content.get("path") or "")
        locator = Locator(list(dict.fromkeys([path.parent, root, self._file.parent])), self._file.parent, lines)
        found = []
        for line in lines:
            image = locator.find(line)
            if image is None:
                detail = f"in {path}: no file of that name below '{locator.root}', or several"
                report(Finding(Kind.MISSING_IMAGE, printable(line), detail))
            else:
                found.append(image)
        return found

    def _locate(self, split: str, entry: Entry) -> Path:
        return entry.detail

    def _read(self, split: str, entry: Entry, data: bytes) -> Record | None:
        label = _label_of(entry.detail)
        try:
            objects = [self._object(line, number) for number, line in enumerate(read_lines(label), 1)] if label else []
        except NotNormalisedError as error:
            self._report(Finding(Kind.NOT_NORMALISED, entry.name, f"{label}: {error}"))
            return None
        except (ValueError, OSError) as error:
            self._report(Finding(Kind.BAD_ANNOTATION, entry.name, f"{label}: {error}"))
            return None
        return make_record(data, entry.name, objects, self._classes, self._report, normalised=True)

    def _object(self, line: str, number: int) -> AnnotatedObject:
        """Read a line of labels.

        Raises:
            ValueError: neither a box nor an outline.
        """
        try:
            label, *values = map(float, line.split())
        except ValueError:
            raise ValueError(f"expected numbers in line {number}; got '{line:.60}'") from None
        if len(values) != 4 and self._content.get("kpt_shape") and len(values) > 4:
            values = values[:4]
        if not label.is_integer() or len(values) < 4 or len(values) % 2:
            raise ValueError(f"expected 'class cx cy w h' or an outline in line {number}; got '{line:.60}'")
        far = EDGE if len(values) == 4 else FAR
        if not all(-far <= value <= 1 + far for value in values):  # nan neither
            raise NotNormalisedError(f"line {number}: '{line:.60}'")
        if len(values) == 4:
            x, y, width, height = values
            left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
        else:
            left, right, top, bottom = min(values[::2]), max(values[::2]), min(values[1::2]), max(values[1::2])
        index = int(label)
        known = 0 <= index < len(self.class_names)
        return AnnotatedObject(self.class_names[index] if known else f"class {index}", (top, left, bottom, right))


class NotNormalisedError(ValueError):
    """Coordinates that are no shares of an image's sides."""


def _label_of(image: Path) -> Path | None:
    """Return the label file of an image; None where there is none."""
    parts = list(image.parts)
    inner = Path(image.stem + ".txt")
    places = [image.parent / inner, image.parent / "labels" / inner]
    for index in (index for index, part in enumerate(parts[:-1]) if part.lower() == "images"):  # the last one first
        names = ("labels", "Labels") if parts[index] == "images" else ("Labels", "labels")
        places = [Path(*parts[:index], name, *parts[index + 1 : -1], inner) for name in names] + places
    return next((place for place in places if is_file(place)), None)


def _labels_in(folder: Path) -> list[Path]:
    """List a folder's label files, without lists and other text."""
    return [path for path in sorted(folder.glob("*.txt")) if not is_junk(path.name) and holds_labels(path)]


def holds_labels(path: Path) -> bool:
    """Return whether a text file's first line is a class and at least four shares."""
    try:
        words = read_head(path).partition("\n")[0].split()
        return len(words) >= 5 and all(-1 <= float(word) <= 2 for word in words[1:])
    except (OSError, ValueError):
        return False


def _relative(path: Path, base: Path) -> str:
    return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)


def _file_in(folder: Path) -> Path:
    """Return the file that describes a folder's set.

    Raises:
        ValueError: there is none, or several.
    """
    found = yolo_files_in(folder)
    if len(found) != 1:
        ways = " or ".join(f"yolo:{path}" for path in found[:4])
        got = f"there are {len(found)}: write {ways}" if found else "there is none"
        raise ValueError(f"expected a data.yaml with names and train in '{folder}'; {got}")
    return found[0]


def yolo_files_in(folder: Path) -> list[Path]:
    """List the files that name classes and images of training: in a folder and one level down, else those deeper."""

    def describes(path: Path) -> bool:
        try:
            return {"names", "train"} <= _read_content(path).keys()
        except ContentError:  # which opening it says
            return {"names", "train"} <= set(re.findall(r"^(\w+)\s*[:=]", read_head(path), re.MULTILINE))
        except (ValueError, OSError):
            return False

    found = (filter(describes, files_below(folder, (".yaml", ".yml", "obj.data"), depth)) for depth in (1, DEPTH))
    return next(filter(None, map(list, found)), [])


def _read_content(path: Path) -> dict[str, Any]:
    """Read a data.yaml, or Darknet's lines "key = value".

    Raises:
        ValueError: no such file, or none of the two.
    """
    if not is_file(path):
        raise ValueError(f"expected yolo:data.yaml; there is no file '{path}'")
    if path.suffix == ".data":
        pairs = (line.partition("=") for line in read_lines(path))
        content: Any = {key.strip(): value.strip() for key, _, value in pairs}
        names = next(
            (p for p in (path.parent / content.get("names", ""), path.with_suffix(".names")) if is_file(p)), None
        )
        return {**content, "names": read_lines(names) if names else None}
    try:
        text = read_text(path)
        content = yaml.safe_load(text)
        if isinstance(content, dict) and isinstance(content.get("names"), dict | list):
            # As they are written: YAML takes `no` for False, and 010 for 8.
            content["names"] = yaml.load(text, yaml.BaseLoader)["names"]
    except yaml.YAMLError as error:
        raise ContentError(f"expected YAML in '{path}'; got {' '.join(str(error).split()):.120}") from None
    if not isinstance(content, dict):
        raise ValueError(f"expected names, train and val in '{path}'; got {type(content).__name__}")
    return content
