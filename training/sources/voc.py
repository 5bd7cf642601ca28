"""Pascal VOC folders: `JPEGImages/`, `Annotations/*.xml`, `ImageSets/Main/SPLIT.txt`."""

import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

from training.sources.record import Record, check_split

MOST_XML_BYTES = 4 << 20
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")

log = logging.getLogger(__name__)


class VocFolder:
    """A folder in Pascal VOC's layout.

    Classes are the lines of `classes.txt` where there is one, else all names in the annotations, sorted. Records
    that can't be read, and boxes without area, are skipped and said so in the log.

    Raises:
        ValueError: the folder is not laid out so.
    """

    def __init__(self, folder: Path):
        self.folder, self.name = folder, f"voc:{folder}"
        lists = folder / "ImageSets" / "Main"
        # VOC's own folders also have a list for each class, as CLASS_SPLIT.txt with a flag a line.
        names = {path.stem for path in lists.glob("*.txt")}
        self.splits = tuple(
            sorted(n for n in names if n.rpartition("_")[2] not in names - {n} or not _is_flagged(lists / f"{n}.txt"))
        )
        missing = [str(part) for part in ("Annotations", "JPEGImages") if not (folder / part).is_dir()]
        if missing or not self.splits:
            missing += [] if self.splits else ["ImageSets/Main/*.txt"]
            raise ValueError(f"expected a Pascal VOC folder; '{folder}' has no {' and no '.join(missing)}")

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of their labels."""
        listed = self.folder / "classes.txt"
        if listed.is_file():
            return tuple(line.strip() for line in listed.read_text().splitlines() if line.strip())
        found: set[str] = set()
        for path in sorted((self.folder / "Annotations").glob("*.xml")):
            root = _parse(path)
            found |= (
                {name.text.strip() for name in root.findall("object/name") if name.text} if root is not None else set()
            )
        if not found:
            raise ValueError(f"expected objects in the annotations of '{self.folder}'; there are none")
        return tuple(sorted(found))

    def records(self, split: str, limit: int | None = None) -> Iterator[Record]:
        """Yield the split's records in the order of its list, the first `limit` of them."""
        check_split(self, split)
        lines = (self.folder / "ImageSets" / "Main" / f"{split}.txt").read_text().splitlines()
        for name in [line.split()[0] for line in lines if line.strip()][:limit]:
            record = self._record(name)
            if record is not None:
                yield record

    def _record(self, name: str) -> Record | None:
        root = _parse(self.folder / "Annotations" / f"{name}.xml")
        image = self._image(name, root)
        if root is None or image is None:
            if root is not None:
                log.warning("%s: skipped %s: no image of that name in JPEGImages", self.name, name)
            return None
        try:
            with Image.open(image) as opened:
                stored = opened.size
                turned = stored[::-1] if opened.getexif().get(0x0112) in range(5, 9) else stored
        except (OSError, Image.DecompressionBombError) as error:
            log.warning("%s: skipped %s: %s", self.name, image.name, error)
            return None
        width, height = (_number(root.find(f"size/{side}")) or 0 for side in ("width", "height"))
        if turned != stored and (width, height) == stored:
            log.warning(
                "%s: skipped %s: its boxes lie on the image as stored, not as displayed (EXIF)", self.name, name
            )
            return None
        boxes, labels, flags = self._objects(root, name, turned)
        return Record.of_objects(image.read_bytes(), name, boxes, labels, **flags)

    def _image(self, name: str, root: ElementTree.Element | None) -> Path | None:
        stated = root.findtext("filename") if root is not None else None
        named = [Path(stated).name] if stated else []
        for candidate in [f"{name}{suffix}" for suffix in (*SUFFIXES, *map(str.upper, SUFFIXES))] + named:
            if (self.folder / "JPEGImages" / candidate).is_file():
                return self.folder / "JPEGImages" / candidate
        return None

    def _objects(self, root: ElementTree.Element, name: str, size: tuple[int, int]):
        """Read the objects: boxes normalised (VOC's are pixels from 1, inclusive), labels, flags."""
        width, height = size
        boxes, labels = [], []
        flags: dict[str, list[bool]] = {"difficult": [], "truncated": [], "occluded": []}
        for item in root.findall("object"):
            label = (item.findtext("name") or "").strip()
            edges = [_number(item.find(f"bndbox/{edge}")) for edge in ("ymin", "xmin", "ymax", "xmax")]
            stated = [edge for edge in edges if edge is not None]
            if label not in self.class_names or len(stated) < 4:
                log.warning("%s: left out an object of %s: class '%s', box %s", self.name, name, label, edges)
                continue
            ymin, xmin, ymax, xmax = stated
            box = [(ymin - 1) / height, (xmin - 1) / width, ymax / height, xmax / width]
            box = [min(max(edge, 0.0), 1.0) for edge in box]
            if ymin >= ymax or xmin >= xmax or box[0] >= box[2] or box[1] >= box[3]:
                log.warning("%s: left out a box of %s without area: %s", self.name, name, stated)
                continue
            boxes.append(box)
            labels.append(self.class_names.index(label))
            for flag, values in flags.items():
                values.append((item.findtext(flag) or "0").strip() == "1")
        return boxes, labels, flags


def _is_flagged(path: Path) -> bool:
    """Tell whether a list's first line has a flag after the name."""
    with path.open() as lines:
        return len(next(lines, "").split()) > 1


def _parse(path: Path) -> ElementTree.Element | None:
    try:
        if path.stat().st_size > MOST_XML_BYTES:
            raise ValueError(f"larger than {MOST_XML_BYTES >> 20} MiB")
        return ElementTree.parse(path).getroot()
    except (OSError, ValueError, ElementTree.ParseError) as error:
        log.warning("voc: skipped %s: %s", path.name, error)
        return None


def _number(element: ElementTree.Element | None) -> float | None:
    try:
        return float(element.text or "") if element is not None else None
    except ValueError:
        return None
