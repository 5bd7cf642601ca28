"""Image folders: a folder per class, with or without folders of splits above: `[SPLIT/]CLASS/**/IMAGE`."""

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from overfeat_tf.images.files import SUFFIXES
from training.sources.checks import Finding, Kind, ReportFinding, make_record
from training.sources.file_source import Entry, FileSource
from training.sources.listing import files_below, images_below, is_dir, is_image, is_junk, is_utf8, printable
from training.sources.record import Record
from training.sources.splits import PARTS, names_of_splits, split_of
from training.sources.text import one_line


class ImageFolder(FileSource):
    """A folder per class: its name is the class, and its images have no boxes.

    Folders named for a split (`split_of`, in any case) that have folders within are splits; without any, all is
    "train". Where all folders are so named, they are splits and never classes. A folder that holds but one folder, with
    folders within, is passed through. Folders beside splits are not used, and reported when the first records begin, as
    are files that may be images and are not taken. An image's id is its path in the folder. The order is fixed and
    mixed.

    Raises:
        ValueError: no folder, no class in it, or one whose name is not UTF-8.
    """

    boxed = False

    def __init__(self, folder: Path, report: ReportFinding):
        super().__init__(f"folder:{folder}", report)
        if not is_dir(folder):
            raise ValueError(f"expected a folder with a folder per class; there is no folder '{folder}'")
        self.folder = _pass_through(folder)
        names = _folders(self.folder)
        self._above = _splits(self.folder, names) or {"train": ""}
        self._within = {split: _folders(self.folder / above) for split, above in self._above.items()}
        self.splits = tuple(self._above)
        labels = sorted({name for names in self._within.values() for name in names})
        if not labels or all(split_of(name, folder=True) or name.lower() in PARTS for name in labels):
            got = f"only folders of splits or parts: {', '.join(labels)}" if labels else "no folders"
            raise ValueError(f"expected a folder with a folder per class; '{folder}' has {got}")
        if alike := names_of_splits(labels):
            ways = " or ".join(f"folder:{folder / name}" for name in alike)
            got = f"what seem to be splits: {', '.join(alike)}: name them train, val and test, or write {ways}"
            raise ValueError(f"expected a folder with a folder per class; '{folder}' has {got}")
        if learnt := self._within.get("train"):  # as in Tiny ImageNet, whose val has a folder of images
            parts = [name for name in labels if name.lower() in PARTS and name not in learnt]
            labels = [name for name in labels if name not in parts]
            self._findings += [Finding(Kind.NOT_TAKEN, printable(name), "no class of 'train'") for name in parts]
            self.splits = tuple(split for split, names in self._within.items() if set(names) - set(parts))
        empty = [name for name in labels if not self._has_images(name)]
        if len(empty) < len(labels):
            labels = [name for name in labels if name not in empty]
            self._findings += [Finding(Kind.NOT_TAKEN, printable(name), "no images in it") for name in empty]
        for name in labels:
            if not is_utf8(name):
                raise ValueError(f"expected classes' folders with names in UTF-8; got {os.fsencode(name)!r}: rename it")
        self._labels: Mapping[str, str] = {name: one_line(name) for name in labels}
        self.class_names = tuple(dict.fromkeys(self._labels.values()))
        for name, count in Counter(self._labels.values()).items():
            if count > 1:
                folders = ", ".join(repr(folder) for folder, label in self._labels.items() if label == name)
                self._findings.append(Finding(Kind.SAME_NAME, name, f"folders {folders}"))
        splits = [Path(above).parts[0] for above in self._above.values() if above]
        used = ", ".join(f"'{name}'" for name in splits)
        # A class named as a split is would hide all others.
        for name in [name for name in names if splits and name not in splits]:
            detail = f"beside {used}, taken for splits; if it is a class, put all classes into a folder 'train'"
            self._findings.append(Finding(Kind.NOT_TAKEN, printable(name), detail))

    def _has_images(self, name: str) -> bool:
        folders = (self.folder / above / name for split, above in self._above.items() if name in self._within[split])
        return any(next(files_below(folder, SUFFIXES), None) is not None for folder in folders)

    def _list(self, split: str, report: ReportFinding) -> list[Entry]:
        above = self._above[split]
        loose = sorted(e.name for e in os.scandir(self.folder / above) if is_image(e.name) and not is_junk(e.name))
        if loose:
            detail = f"{len(loose)} images in no class's folder, the first {printable(loose[0])}"
            report(Finding(Kind.NOT_TAKEN, above or str(self.folder), detail))
        return [
            Entry(path, self._labels[name])
            for name in self._within[split]
            if name in self._labels
            for path in images_below(self.folder, os.path.join(above, name), report)
        ]

    def _locate(self, split: str, entry: Entry) -> Path:
        return self.folder / entry.name

    def _read(self, split: str, entry: Entry, data: bytes) -> Record | None:
        return make_record(data, entry.name, (), self._classes, self._report, image_class=entry.detail)


def _pass_through(folder: Path) -> Path:
    """Return the folder below that has the classes, where each above it holds one folder alone and no images."""
    while True:
        below = _folders(folder)
        has_images = any(is_image(name) and not is_junk(name) for name in os.listdir(folder))
        if len(below) != 1 or has_images or not _folders(folder / below[0]) or split_of(below[0], folder=True):
            return folder
        if any(map(is_image, os.listdir(folder / below[0]))):  # a class, with folders within
            return folder
        folder = folder / below[0]


def _splits(folder: Path, names: list[str]) -> dict[str, str]:
    """Return the folders of splits by their splits; if several match one, the one with exactly that name."""
    found: dict[str, str] = {}
    for name in names:
        split = split_of(name, folder=True)
        if split and _folders(folder / name) and (split not in found or name == split):
            found[split] = name
            while _folders(folder / found[split]) == [name]:  # Kaggle's training_set/training_set
                found[split] = os.path.join(found[split], name)
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_junk(entry.name))
