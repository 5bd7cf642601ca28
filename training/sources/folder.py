"""Image folders: a folder a class, with or without folders of splits above: `[SPLIT/]CLASS/**/IMAGE`."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from training.sources.checks import Finding, Kind, ReportFinding, make_record, read_file
from training.sources.listing import images_below, is_utf8, printable
from training.sources.record import Record, check_split, mixed

SPLITS = ("train", "val", "valid", "validation", "test")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".jxl")


class ImageFolder:
    """A folder a class: its name is the class, and its images have no boxes.

    Folders named as splits are (of `SPLITS`, in any case) that have folders within are splits; without any, all is
    "train". Folders beside splits are not used, and reported when the first records begin, as are files that may be
    images and are not taken. An image's id is its path in the folder. The order is fixed and mixed.

    Raises:
        ValueError: no folder, no class in it, or one whose name is not UTF-8.
    """

    boxed = False

    def __init__(self, folder: Path, report: ReportFinding):
        self.folder, self.name, self._report = folder, f"folder:{folder}", report
        if not folder.is_dir():
            raise ValueError(f"expected a folder that has a folder a class; '{folder}' is none")
        names = _folders(folder)
        self._above = _splits(folder, names) or {"train": ""}
        self._classes = {split: _folders(folder / above) for split, above in self._above.items()}
        self.splits = tuple(self._above)
        self.class_names = tuple(sorted({name for names in self._classes.values() for name in names}))
        if not self.class_names:
            raise ValueError(f"expected a folder that has a folder a class; '{folder}' has no folders")
        for name in self.class_names:
            if not is_utf8(name):
                raise ValueError(f"expected classes' folders with names in UTF-8; got {os.fsencode(name)!r}: rename it")
        self._unused = [] if "" in self._above.values() else [n for n in names if n not in self._above.values()]
        self._listed = cache(self._list)

    def records(self, split: str, limit: int | None = None) -> Iterator[Record]:
        """Yield the split's records, the first `limit` of them."""
        check_split(self, split)
        self._report_unused()
        classes = {name: label for label, name in enumerate(self.class_names)}
        for label, path in self._listed(split)[:limit]:
            data = read_file(self.folder / path, path, self._report)
            if data is not None:
                record = make_record(data, path, (), classes, self._report, image_class=label)
                if record is not None:
                    yield record

    def _list(self, split: str) -> list[tuple[str, str]]:
        """List a split's classes and paths."""
        above = self._above[split]
        loose = sorted(e.name for e in os.scandir(self.folder / above) if e.name.lower().endswith(SUFFIXES))
        if loose:
            detail = f"{len(loose)} images in no class's folder, the first {printable(loose[0])}"
            self._report(Finding(Kind.NOT_TAKEN, above or str(self.folder), detail))
        return mixed(
            [
                (label, path)
                for label in self._classes[split]
                for path in images_below(self.folder, os.path.join(above, label), SUFFIXES, self._report)
            ]
        )

    def _report_unused(self) -> None:
        """Report the folders that are not used, once: a class named as a split is would hide all others."""
        used = ", ".join(f"'{above}'" for above in self._above.values())
        for name in self._unused:
            detail = f"beside {used}, taken for splits; if it is a class, put all classes into a folder 'train'"
            self._report(Finding(Kind.NOT_TAKEN, printable(name), detail))
        self._unused = []


def _splits(folder: Path, names: list[str]) -> dict[str, str]:
    """Return the folders of splits by what the splits are called, in the order of `SPLITS`."""
    found = {}
    for split in SPLITS:
        alike = [name for name in names if name.lower() == split and _folders(folder / name)]
        if alike:
            found[split] = split if split in alike else alike[0]  # of Train and train the second; the other is reported
    return found


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
