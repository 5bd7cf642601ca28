"""Pascal VOC folders: `JPEGImages/`, `Annotations/*.xml`, `ImageSets/Main/SPLIT.txt`."""

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from training.sources.annotation_xml import class_names_in, read_annotation, short_names
from training.sources.checks import Finding, Kind, ReportFinding, make_record, read_file
from training.sources.record import Record, check_split, mixed

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
FIRST_PIXEL = 1  # VOC's boxes are pixels from 1, inclusive
FLAG = re.compile(r"\s+(-1|0|1)$")  # after each name in a class's list: absent, difficult, present


class VocFolder:
    """A folder in Pascal VOC's layout.

    Classes are the lines of `classes.txt` where there is one, else all names in the annotations, sorted. A line
    "ID<tab>WORDS" names the class of that id. Records that can't be read, and boxes that can't be used, are skipped
    and told to the report. The order is fixed and mixed.

    Raises:
        ValueError: the folder is not laid out so.
    """

    boxed = True

    def __init__(self, folder: Path, report: ReportFinding):
        self.folder, self.name, self._report = folder, f"voc:{folder}", report
        lists = folder / "ImageSets" / "Main"
        # VOC's own folders also have a list for each class, as CLASS_SPLIT.txt with a flag a line.
        names = {path.stem for path in lists.glob("*.txt")}
        self.splits = tuple(
            sorted(n for n in names if n.rpartition("_")[2] not in names - {n} or not self._is_flagged(n))
        )
        missing = [str(part) for part in ("Annotations", "JPEGImages") if not (folder / part).is_dir()]
        if missing or not self.splits:
            missing += [] if self.splits else ["ImageSets/Main/*.txt"]
            raise ValueError(f"expected a Pascal VOC folder; '{folder}' has no {' and no '.join(missing)}")

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of their labels."""
        return tuple(self._named.values())

    def records(self, split: str, limit: int | None = None) -> Iterator[Record]:
        """Yield the split's records, the first `limit` of them."""
        check_split(self, split)
        lines = (self.folder / "ImageSets" / "Main" / f"{split}.txt").read_text().splitlines()
        for name in mixed([self._named_in(line.strip()) for line in lines if line.strip()])[:limit]:
            record = self._record(name)
            if record is not None:
                yield record

    @cached_property
    def _named(self) -> dict[str, str]:
        """Class names by what annotations call them."""
        listed = self.folder / "classes.txt"
        if listed.is_file():
            lines = [line.strip() for line in listed.read_text().splitlines() if line.strip()]
            if all("\t" in line for line in lines):
                return short_names(dict(line.split("\t", 1) for line in lines))
            return {line: line for line in lines}
        found = class_names_in(sorted((self.folder / "Annotations").glob("*.xml")))
        if not found:
            raise ValueError(f"expected objects in the annotations of '{self.folder}'; there are none")
        return dict(zip(found, found, strict=True))

    @cached_property
    def _classes(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self._named)}

    def _is_flagged(self, split: str) -> bool:
        """Return whether a list's first line has a flag after the name."""
        with (self.folder / "ImageSets" / "Main" / f"{split}.txt").open() as lines:
            first = next(lines, "").strip()
        return self._named_in(first) != first

    def _named_in(self, line: str) -> str:
        """Return the image's name without a flag; what looks like one may be part of a name, as in "photo 1"."""
        if FLAG.search(line) is None or (self.folder / "Annotations" / f"{line}.xml").is_file():
            return line
        return FLAG.sub("", line)

    def _record(self, name: str) -> Record | None:
        annotation = read_annotation(self.folder / "Annotations" / f"{name}.xml", name, self._report)
        if annotation is None:
            return None
        image = self._image(name, annotation.filename)
        if image is None:
            self._report(Finding(Kind.MISSING_IMAGE, name, "no image of that name in JPEGImages"))
            return None
        data = read_file(image, name, self._report)
        if data is None:
            return None
        size = annotation.size
        return make_record(data, name, annotation.things, self._classes, self._report, stated=size, first=FIRST_PIXEL)

    def _image(self, name: str, stated: str) -> Path | None:
        named = [Path(stated).name] if stated else []
        for candidate in [f"{name}{suffix}" for suffix in (*SUFFIXES, *map(str.upper, SUFFIXES))] + named:
            if (self.folder / "JPEGImages" / candidate).is_file():
                return self.folder / "JPEGImages" / candidate
        return None
