"""ImageNet's folders: `Data/`, `Annotations/` and `ImageSets/`, each with `CLS-LOC` or `DET` in it."""

import os
import re
from functools import cached_property
from pathlib import Path

from overfeat_tf.images.files import SUFFIXES
from training.sources.checks import Finding, Kind, ReportFinding, make_record
from training.sources.file_source import Entry, IdSource
from training.sources.formats.annotation_xml import class_names_in, read_annotation, short_names
from training.sources.listing import images_below, is_dir, is_file, is_junk
from training.sources.record import Record
from training.sources.text import read_lines

TASKS = ("CLS-LOC", "DET")
# The archives' own first.
SPELLINGS = dict.fromkeys((".JPEG", *SUFFIXES, *map(str.upper, SUFFIXES), *map(str.title, SUFFIXES)))
WNID = re.compile(r"n\d{8}")
# The class list of each task, by preference, as the archives or the development kit have it.
CLASS_LISTS = {"CLS-LOC": ("LOC_synset_mapping.txt", "map_clsloc.txt"), "DET": ("map_det.txt",)}
RENAMED = {"train_cls": "train"}  # the list of all of CLS-LOC's training images; train_loc has those with boxes


class IlsvrcFolder(IdSource):
    """The CLS-LOC or DET layout of the ImageNet challenge.

    `folder` has `Data` in it, or is `Data/CLS-LOC` or `Data/DET` itself, where both are there. Splits are the lists of
    `ImageSets`, or without lists all images of a folder in `Data`; a test split without annotations is none. Classes
    have the order and, up to the first comma, the words of the class list, which is looked for beside `Data`, above it
    and in `devkit/data`; without one they are WordNet ids, sorted.

    An image of CLS-LOC has the class of its folder, or of its annotation; where it has no box, that class alone.
    Boxes are pixels from 0. The order is fixed and mixed.

    Raises:
        ValueError: the folder is not laid out so.
    """

    def __init__(self, folder: Path, report: ReportFinding):
        super().__init__(f"ilsvrc:{folder}", report)
        self.folder, self.task = _find(folder)
        self._images, self._annotations, lists = (
            self.folder / part / self.task for part in ("Data", "Annotations", "ImageSets")
        )
        self.boxed = self._annotations.is_dir()
        self._lists: dict[str, Path | None] = {}  # a split's list; None for all images of the folder
        for path in (path for path in sorted(lists.glob("*.txt")) if not is_junk(path.name)):
            if not re.search(r"_\d+$", path.stem) and self._is_usable(_folder_of(path.stem)):  # train_1: of one class
                self._lists[RENAMED.get(path.stem, path.stem)] = path
        for path in sorted(self._images.iterdir()):
            if self._is_usable(path.name) and path.name not in self._lists:
                self._lists[path.name] = None
        self.splits = tuple(self._lists)
        if not self.splits:
            raise ValueError(f"expected annotated images in '{self._images}'; there are no folders train or val")

    @cached_property
    def _named(self) -> dict[str, str]:
        """Class names by WordNet id."""
        above = (self.folder, self.folder / "devkit" / "data", self.folder.parent, self.folder.parent / "devkit/data")
        for name in CLASS_LISTS[self.task]:
            for path in (folder / name for folder in above):
                if path.is_file():
                    return read_classes(path)
        if self.task == "CLS-LOC" and (self._images / "train").is_dir():
            inner = (entry.name for entry in os.scandir(self._images / "train") if entry.is_dir())
            found = sorted(name for name in inner if not is_junk(name))
        else:
            found = list(class_names_in(sorted(self._annotations.rglob("*.xml"))))
        if not found:
            raise ValueError(f"expected {' or '.join(CLASS_LISTS[self.task])} in '{self.folder}', or classes to list")
        return dict(zip(found, found, strict=True))

    def _is_usable(self, folder: str) -> bool:
        """Return whether a folder of images has classes: annotations, or for CLS-LOC's training images folders."""
        return (self._images / folder).is_dir() and (
            (self._annotations / folder).is_dir() or (self.task == "CLS-LOC" and folder == "train")
        )

    def _list(self, split: str, report: ReportFinding) -> list[Entry]:
        """List a split's images: their paths in its folder, without suffix."""
        if (path := self._lists[split]) is not None:
            return [Entry(line.split()[0]) for line in read_lines(path)]
        found = images_below(self._images / split, "", report)
        return [Entry(os.path.splitext(path)[0]) for path in found]

    def _locate(self, split: str, entry: Entry) -> Path | None:
        folder = self._images / _folder_of(split)
        paths = (folder / f"{entry.name}{suffix}" for suffix in SPELLINGS)
        return next((path for path in paths if is_file(path)), None)

    def _report_missing(self, split: str, entry: Entry) -> None:
        detail = f"none of that name in {self._images / _folder_of(split)}"
        self._report(Finding(Kind.MISSING_IMAGE, entry.name, detail))

    def _read(self, split: str, entry: Entry, data: bytes) -> Record | None:
        annotation, image_class = None, None
        name, above = entry.name, Path(entry.name).parent.name
        xml = self._annotations / _folder_of(split) / f"{name}.xml"
        if self.task == "CLS-LOC" and WNID.fullmatch(above):
            image_class = above
        if image_class is None or is_file(xml):  # most training images of CLS-LOC have no boxes
            annotation = read_annotation(xml, name, self._report)
            if annotation is None:
                return None
        if self.task == "CLS-LOC" and image_class is None and annotation and annotation.objects:
            image_class = annotation.objects[0].label
        objects, stated = (annotation.objects, annotation.size) if annotation else ([], (0.0, 0.0))
        return make_record(data, name, objects, self._classes, self._report, stated=stated, image_class=image_class)


def read_classes(path: Path) -> dict[str, str]:
    """Read a class list: `short_names` by WordNet id, in its order.

    Lines are "n02119789 1 kit_fox" in the development kit's lists, "n01440764 tench, Tinca tinca" in Kaggle's.

    Raises:
        ValueError: a line that has no WordNet id and words.
    """
    words: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), start=1):
        parts = line.split(maxsplit=2 if path.name.startswith("map_") else 1)
        if len(parts) < 2 or not WNID.fullmatch(parts[0]):
            raise ValueError(f"expected a WordNet id and words in line {number} of '{path}'; got '{line[:60]}'")
        words[parts[0]] = parts[-1].replace("_", " ")
    return short_names(words)


def _find(folder: Path) -> tuple[Path, str]:
    """Return the folder that has `Data`, and the task."""
    if folder.name in TASKS and folder.parent.name == "Data" and is_dir(folder):
        return folder.parent.parent, folder.name
    for root in (folder, folder / "ILSVRC"):  # the second as Kaggle's archive has it
        found = [task for task in TASKS if is_dir(root / "Data" / task)]
        if len(found) == 1:
            return root, found[0]
        if found:
            ways = " or ".join(f"'ilsvrc:{root / 'Data' / task}'" for task in found)
            raise ValueError(f"expected one of CLS-LOC and DET; '{root / 'Data'}' has both: say {ways}")
    raise ValueError(f"expected an ImageNet folder; '{folder}' has no Data/CLS-LOC and no Data/DET")


def _folder_of(split: str) -> str:
    """Return the folder that a split's images are in: train for train_loc."""
    return split.partition("_")[0]
