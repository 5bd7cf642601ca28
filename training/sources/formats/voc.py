"""Pascal VOC's annotations, an XML file an image, in VOC's own layout and in those of the tools that write them."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from training.sources.checks import Finding, Kind, ReportFinding, make_record
from training.sources.file_source import Entry, IdSource
from training.sources.formats.annotation_xml import (
    Annotation,
    class_names_in,
    image_name_in,
    may_be_annotation,
    read_annotation,
    short_names,
)
from training.sources.listing import (
    Locator,
    decoded,
    files_below,
    folders_below,
    images_below,
    is_dir,
    is_file,
    is_image,
    is_junk,
)
from training.sources.record import Record
from training.sources.splits import DEPTH, IMAGES, NAMES, split_of, split_of_path
from training.sources.text import one_line, read_lines

FIRST_PIXEL = 1  # VOC's boxes are pixels from 1, inclusive
FLAG = re.compile(r"\s+(-1|0|1)$")  # after each name in a class's list: absent, difficult, present
LISTS = ("ImageSets/Main", "ImageSets")  # the second as some tools write it


class VocFolder(IdSource):
    """A folder of images with an annotation each.

    In VOC's own layout, and CVAT's, there are `JPEGImages/`, `Annotations/` and lists in `ImageSets/Main/`, of which
    each is a split. It may lie in folders below, as `VOCdevkit/VOC2007/`. Else every XML file below the folder belongs
    to the image of its name: beside it (labelImg, Roboflow), or in another folder (`images/` and `annotations/`); then
    splits are the folders that are named for one (`split_of`), and without any all is "train".

    Classes are the lines of `classes.txt` where there is one, else all names in the annotations, sorted. A line
    "ID<tab>WORDS" names the class of that id. Records that can't be read, and boxes that can't be used, are skipped
    and told to the report.

    Raises:
        ValueError: there is no annotation, or several VOC folders.
    """

    def __init__(self, folder: Path, report: ReportFinding):
        super().__init__(f"voc:{folder}", report)
        self.folder = _find(folder)
        self._lists = _lists(self.folder)
        if self._lists:
            self._annotations = self.folder / "Annotations"
            places = [path for name in IMAGES if (path := self.folder / name).is_dir()] or [self.folder]
            locator = Locator(places, places[0], self._all_names())
            self._locator = lambda split: locator
            # VOC's own folders also have a list for each class, as CLASS_SPLIT.txt with a flag a line.
            names = self._lists.keys()
            splits = ((name, name.rpartition("_")[2]) for name in names)
            self.splits = tuple(
                sorted(n for n, own in splits if NAMES.get(own, own) not in names - {n} or not self._is_flagged(n))
            )
        else:
            self._pairs = self._pair()
            self.splits = tuple(sorted({split for split, _, _ in self._pairs}, key=list(NAMES.values()).index))

    @cached_property
    def _named(self) -> dict[str, str]:
        """Class names by what annotations call them."""
        listed = self.folder / "classes.txt"
        if is_file(listed):
            lines = read_lines(listed)
            if all("\t" in line for line in lines):
                return short_names(dict(line.split("\t", 1) for line in lines))
            names = Counter(map(one_line, lines))
            twice = [name for name, count in names.items() if count > 1]
            self._findings += [Finding(Kind.SAME_NAME, name, f"{names[name]} lines of {listed}") for name in twice]
            return {name: name for name in names}
        if self._lists:
            files = list(files_below(self._annotations, (".xml",)))
        else:
            files = [xml for _, _, xml in self._pairs if xml is not None]
        found = class_names_in(files)
        if not found:
            raise ValueError(f"expected objects in the annotations of '{self.folder}'; there are none")
        return dict(zip(found, found, strict=True))

    def _list(self, split: str, report: ReportFinding) -> list[Entry]:
        if self._lists:
            names = [self._named_in(line) for line in read_lines(self._lists[split])]
            return [Entry(name, self._xml(name)) for name in names]
        return [
            Entry(image or str(xml.relative_to(self.folder)), xml)  # type: ignore[union-attr]
            for own, image, xml in self._pairs
            if own == split
        ]

    def _locate(self, split: str, entry: Entry) -> Path | None:
        if not self._lists:
            path = self.folder / entry.name
            return None if path == entry.detail else path
        found = self._locator(split).find(entry.name)
        if found is None and (stated := image_name_in(entry.detail)):
            found = self._locator(split).find(Path(decoded(stated)).name)
        return found

    def _read(self, split: str, entry: Entry, data: bytes) -> Record | None:
        annotation = self._annotation(entry)
        if annotation is None:
            return None
        objects, size = annotation.objects, annotation.size
        return make_record(data, entry.name, objects, self._classes, self._report, stated=size, first=FIRST_PIXEL)

    def _is_annotated(self, entry: Entry) -> bool:
        return entry.detail is not None

    def _report_missing(self, split: str, entry: Entry) -> None:
        if not self._lists or self._annotation(entry) is not None:  # else that is what is wrong
            self._report(
                Finding(Kind.MISSING_IMAGE, entry.name, f"no image of that name below '{self.folder}', or several")
            )

    def _annotation(self, entry: Entry) -> Annotation | None:
        if entry.detail is None:
            self._report(Finding(Kind.MISSING_ANNOTATION, entry.name, "no XML file of that name"))
            return None
        return read_annotation(entry.detail, entry.name, self._report)

    def _all_names(self) -> Iterator[str]:
        for split in self.splits:
            yield from map(self._named_in, read_lines(self._lists[split]))

    def _xml(self, name: str) -> Path:
        """Return the path of an image's annotation; the name may be that of its file, or its path."""
        stem = os.path.splitext(name)[0] if is_image(name) else name
        parts = Path(decoded(stem)).parts
        folders = [place for place, part in enumerate(parts) if part in IMAGES]
        below = Path(*parts[folders[-1] + 1 :]) if folders else stem
        paths = [self._annotations / f"{form}.xml" for form in (name, stem, below)]
        return next((path for path in paths if is_file(path)), paths[0])

    def _is_flagged(self, split: str) -> bool:
        """Return whether a list's first line has a flag after the name; one without lines tells nothing else."""
        lines = read_lines(self._lists[split])
        return not lines or self._named_in(lines[0]) != lines[0]

    def _named_in(self, line: str) -> str:
        """Return the image's name without a flag; what looks like one may be part of a name, as in "photo 1"."""
        if FLAG.search(line) is None or is_file(self._annotations / f"{line}.xml"):
            return line
        return FLAG.sub("", line)

    def _pair(self) -> list[tuple[str, str | None, Path | None]]:
        """Return the split, the image (its path in the folder) and the annotation of each, without lists.

        Raises:
            ValueError: there is no annotation.
        """
        files = list(files_below(self.folder, (".xml",)))
        files = [path for path in files if may_be_annotation(path)]
        if not files:
            raise ValueError(f"expected a Pascal VOC folder; '{self.folder}' has no XML files of annotations")
        images = images_below(self.folder, "", self._findings.append)
        by_stem = {os.path.splitext(image)[0]: image for image in reversed(images)}
        inner = [str(path.relative_to(self.folder).with_suffix("")) for path in files]
        locator = Locator([], self.folder, inner)
        pairs: list[tuple[str | None, Path | None]] = []
        others = []
        for path, name in zip(files, inner, strict=True):
            if image := by_stem.get(name):
                pairs.append((image, path))
            else:  # in a folder that is called alike, or as the annotation says
                found = locator.find(name)
                others.append((str(found.relative_to(self.folder)) if found else None, path))
        taken: dict[str, Path] = {}  # an image's own annotation is the one of its name
        for image, xml in [*pairs, *others]:
            if image is not None and xml is not None:
                taken.setdefault(image, xml)
        for image, path in others:
            if image is None and (stated := image_name_in(path)) and (found := locator.find(stated)):
                image = str(found.relative_to(self.folder))
            if image is not None and taken.setdefault(image, path) != path:
                detail = f"names {image}, which has the annotation {taken[image].relative_to(self.folder)}"
                self._findings.append(Finding(Kind.NOT_TAKEN, str(path.relative_to(self.folder)), detail))
            else:
                pairs.append((image, path))
        pairs += [(image, None) for image in images if image not in taken]
        return self._with_splits(pairs)

    def _with_splits(self, pairs: list[tuple[str | None, Path | None]]) -> list[tuple[str, str | None, Path | None]]:
        """Add the splits that the folders of the images are named for, or else of their annotations."""

        def split(image: str | None, xml: Path | None) -> str | None:
            paths = ([Path(image)] if image else []) + ([xml.relative_to(self.folder)] if xml else [])
            return next((found for path in paths if (found := split_of_path(path.parts[:-1]))), None)

        splits = [split(*pair) for pair in pairs]
        annotated = {own for own, (_, xml) in zip(splits, pairs, strict=True) if xml is not None}
        if None in annotated and "train" not in annotated:  # a place that is called "test", among others
            return [("train", *pair) for pair in pairs]
        loose = [pair for own, pair in zip(splits, pairs, strict=True) if own is None]
        if loose:
            detail = f"{len(loose)} images beside the folders of splits, the first {loose[0][0] or loose[0][1]}"
            self._findings.append(Finding(Kind.NOT_TAKEN, str(self.folder), detail))
        return [(own, *pair) for own, pair in zip(splits, pairs, strict=True) if own is not None]


def _lists(folder: Path) -> dict[str, Path]:
    """Return a VOC folder's lists by their splits (`valid.txt` is "val"); none without annotations of VOC's layout."""
    if not is_dir(folder / "Annotations"):
        return {}
    places = (sorted(path for path in (folder / lists).glob("*.txt") if not is_junk(path.name)) for lists in LISTS)
    lists: dict[str, Path] = {path.stem: path for path in next(filter(None, places), [])}
    splits = {stem: split_of(stem, folder=True) or stem for stem in lists}
    once = {split for split, count in Counter(splits.values()).items() if count == 1}
    return {split if (split := splits[stem]) in once else stem: path for stem, path in lists.items()}


def _find(folder: Path) -> Path:
    """Return the folder of VOC's layout: this one, or one below; this one too where there is none.

    Raises:
        ValueError: no folder, or several of VOC's layout below.
    """
    if not is_dir(folder):
        raise ValueError(f"expected a Pascal VOC folder; there is no folder '{folder}'")
    if _lists(folder):
        return folder
    below = [path for path in folders_below(folder, DEPTH) if _lists(path)]
    if len(below) > 1:
        ways = " or ".join(f"voc:{path}" for path in below)
        raise ValueError(f"expected one Pascal VOC folder; '{folder}' has {len(below)}: write {ways}")
    return below[0] if below else folder
