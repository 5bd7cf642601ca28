"""Image folders: a folder a class, with or without folders of splits above: `[SPLIT/]CLASS/**/IMAGE`."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from training.sources.checks import Report, make_record, read_file
from training.sources.record import Record, check_split, mixed

SPLITS = ("train", "val", "valid", "validation", "test")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".jxl")


class ImageFolder:
    """A folder a class: its name is the class, and its images have no boxes.

    Folders named as splits are (of `SPLITS`) that have folders within are splits; without any, all is "train". An
    image's id is its path in the folder. The order is fixed and mixed.

    Raises:
        ValueError: no folder, or no class in it.
    """

    boxed = False

    def __init__(self, folder: Path, report: Report):
        self.folder, self.name, self._report = folder, f"folder:{folder}", report
        if not folder.is_dir():
            raise ValueError(f"expected a folder that has a folder a class; '{folder}' is none")
        found = {split: _folders(folder / split) for split in SPLITS if (folder / split).is_dir()}
        self._of_split = {split: names for split, names in found.items() if names} or {"": _folders(folder)}
        self.splits = tuple(split or "train" for split in self._of_split)
        self.class_names = tuple(sorted({name for names in self._of_split.values() for name in names}))
        if not self.class_names:
            raise ValueError(f"expected a folder that has a folder a class; '{folder}' has no folders")
        self._listed = cache(self._list)

    def records(self, split: str, limit: int | None = None) -> Iterator[Record]:
        """Yield the split's records, the first `limit` of them."""
        check_split(self, split)
        classes = {name: label for label, name in enumerate(self.class_names)}
        for label, path in self._listed(split)[:limit]:
            data = read_file(self.folder / path, path, self._report)
            if data is not None:
                record = make_record(data, path, (), classes, self._report, whole=label)
                if record is not None:
                    yield record

    def _list(self, split: str) -> list[tuple[str, str]]:
        """List a split's classes and paths: names alone, which for a million images take a second a folder tree."""
        above = split if split in self._of_split else ""
        found = []
        for label in self._of_split[above]:
            for folder, folders, files in os.walk(self.folder / above / label):
                folders.sort()
                where = os.path.relpath(folder, self.folder)
                found += [(label, f"{where}/{file}") for file in sorted(files) if file.lower().endswith(SUFFIXES)]
        return mixed(found)


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
