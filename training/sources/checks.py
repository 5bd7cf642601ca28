"""The checking of records in one place: what an annotation says, held against its image.

Boxes lie in the image as displayed, with its EXIF orientation applied, as `overfeat_tf.images.decode` shows it.
A source hands what it has read to `make_record` and says what is wrong to its report; nothing here stops a run.
"""

import io
import logging
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
from PIL import Image

from training.sources.record import Record

ORIENTATION = 0x0112  # the EXIF tag
QUARTER_TURNS = range(5, 9)  # its values that swap height and width
FLAGS = ("difficult", "crowd", "truncated", "occluded")  # of an object
ROUNDING = 1.0  # pixels that a box may lie beyond the edge before it is worth a word

log = logging.getLogger(__name__)


class Kind(Enum):
    """A kind of finding in a data set: its description, what is done about it, and whether it should be fixed."""

    MISSING_IMAGE = "missing image", "skipped", True
    MISSING_ANNOTATION = "missing annotation", "skipped", True
    BAD_ANNOTATION = "unreadable annotation", "skipped", True
    UNREADABLE = "unreadable image", "skipped", True
    NOT_TAKEN = "file or folder not used", "skipped", True
    AS_STORED = "boxes on the image as stored, not as displayed (EXIF)", "skipped", True
    OTHER_SHAPE = "annotated for an image of another shape", "skipped", True
    UNKNOWN_CLASS = "class not listed", "left out", True
    NO_NUMBERS = "box without numbers", "left out", True
    NO_AREA = "box without area", "left out", True
    OUTSIDE = "box outside the image", "left out", True
    TWO_CLASSES = "same image with two classes", "kept", True
    LEAK = "same image in two splits", "kept", True
    DUPLICATE = "duplicate image", "kept", False
    BEYOND = "box beyond the edge", "clipped", False
    OTHER_SIZE = "annotated at another size", "scaled", False
    TURNED = "EXIF orientation", "shown upright", False
    TINY = "tiny image", "kept", False
    HUGE = "huge image", "kept", False
    ONE_SPLIT = "class in one split only", "kept", False

    def __init__(self, words: str, action: str, fault: bool):
        self.words, self.action, self.fault = words, action, fault


@dataclass(frozen=True)
class Finding:
    """Something wrong: its kind, the image (or class) by name, and the particulars."""

    kind: Kind
    name: str
    detail: str

    def __str__(self) -> str:
        """Return the line that the log has."""
        what = f"an object of {self.name}" if self.kind.action == "left out" else self.name
        return f"{self.kind.action} {what}: {self.kind.words}: {self.detail}"


ReportFinding = Callable[[Finding], None]


class Log:
    """The report of a run: each record or object that is not used gets one warning, however often it is read."""

    def __init__(self) -> None:
        self._said: set[Finding] = set()

    def __call__(self, finding: Finding) -> None:
        """Log a finding unless it is known, or changes little."""
        if finding.kind.action in ("skipped", "left out") and finding not in self._said:
            self._said.add(finding)
            log.warning("%s", finding)


@dataclass(frozen=True)
class Thing:
    """An object as its annotation has it.

    Attributes:
        label: Its class's name in the annotation.
        corners: ymin, xmin, ymax, xmax in pixels; nan where the annotation has no number.
        difficult, crowd, truncated, occluded: As in `Record`.
    """

    label: str
    corners: tuple[float, float, float, float]
    difficult: bool = False
    crowd: bool = False
    truncated: bool = False
    occluded: bool = False


def read_file(path: Path, name: str, report: ReportFinding) -> bytes | None:
    """Return a file's bytes; None, reported, where it can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        report(Finding(Kind.MISSING_IMAGE, name, f"{path}: {error.strerror}"))
        return None


def read_size(data: bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return an encoded image's (width, height) in pixels, as stored and as displayed, from its header.

    Raises:
        ValueError: no image that can be read.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            stored = opened.size
            turned = _orientation(opened) in QUARTER_TURNS
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{len(data)} bytes that are no image, or one that is damaged") from error
    return stored, stored[::-1] if turned else stored


def read_orientation(data: bytes) -> int:
    """Return the EXIF orientation that an image states, 1 where it states none; others than 1..8 turn nothing."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            return _orientation(opened)
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError):
        return 1


def _orientation(opened: Image.Image) -> int:
    try:
        return int(opened.getexif().get(ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, struct.error):  # damaged EXIF does not make the image unreadable
        return 1


def make_record(
    data: bytes,
    name: str,
    things: Iterable[Thing],
    classes: Mapping[str, int],
    report: ReportFinding,
    *,
    stated: tuple[float, float] = (0, 0),
    first: int = 0,
    image_class: str | None = None,
) -> Record | None:
    """Make a record of an image and its annotation, without the objects that can't be used.

    Args:
        data: The encoded image.
        name: Its id.
        things: Its objects.
        classes: Labels by the names that annotations have.
        report: Is told of everything that is wrong.
        stated: The image's (width, height) as the annotation has it, 0 where it does not. One of the image's shape
            but another size is what the boxes are scaled by.
        first: Number of the first pixel: 1 in Pascal VOC, else 0.
        image_class: The class of the image. It labels the image, without a box, if no object is left.

    Returns:
        None where the record can't be used.
    """
    boxes: list[tuple[float, ...]] = []
    kept: list[Thing] = []
    if things := list(things):
        size = _annotated_size(data, name, stated, report)
        if size is None:
            return None
        for thing in things:
            box = _box(thing, name, classes, size, first, report)
            if box is not None:
                boxes.append(box)
                kept.append(thing)
    if image_class is not None and not kept:
        if image_class in classes:
            return Record.of_class(data, name, classes[image_class])
        report(Finding(Kind.UNKNOWN_CLASS, name, f"'{image_class}'"))
        return None
    flags = {flag: [getattr(thing, flag) for thing in kept] for flag in FLAGS}
    return Record.of_objects(data, name, boxes, [classes[thing.label] for thing in kept], **flags)


def _annotated_size(
    data: bytes, name: str, stated: tuple[float, float], report: ReportFinding
) -> tuple[float, float] | None:
    """Return the (width, height) that the boxes are in; None, reported, where that can't be told."""
    try:
        stored, shown = read_size(data)
    except ValueError as error:
        report(Finding(Kind.UNREADABLE, name, str(error)))
        return None
    if min(stated) <= 0 or stated == shown:
        return shown
    sizes = f"the annotation has {stated[0]:g}x{stated[1]:g}, the image is {shown[0]}x{shown[1]}"
    if stated == stored:
        report(Finding(Kind.AS_STORED, name, sizes))
        return None
    # Of one shape: as large as the image once scaled to its longer side, within the rounding of a pixel.
    factor = max(shown) / max(stated)
    if max(abs(side * factor - true) for side, true in zip(stated, shown, strict=True)) > 1 + factor:
        report(Finding(Kind.OTHER_SHAPE, name, sizes))
        return None
    report(Finding(Kind.OTHER_SIZE, name, sizes))
    return stated


def _box(
    thing: Thing, name: str, classes: Mapping[str, int], size: tuple[float, float], first: int, report: ReportFinding
) -> tuple[float, ...] | None:
    """Return an object's box as normalised yxyx; None, reported, where it can't be used."""
    ymin, xmin, ymax, xmax = thing.corners
    edges = (ymin - first, xmin - first, ymax, xmax)
    sides = (size[1], size[0]) * 2
    # In the record's own precision, in which a sliver may have no area.
    clipped = tuple(float(np.float32(min(max(edge / side, 0.0), 1.0))) for edge, side in zip(edges, sides, strict=True))
    beyond = max(-min(edges), max(edge - side for edge, side in zip(edges, sides, strict=True)))
    kind = None
    if thing.label not in classes:
        kind = Kind.UNKNOWN_CLASS
    elif not all(map(math.isfinite, edges)):
        kind = Kind.NO_NUMBERS
    elif ymin >= ymax or xmin >= xmax:
        kind = Kind.NO_AREA
    elif clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        kind = Kind.OUTSIDE
    if kind is not None or beyond > ROUNDING:
        corners = f"yxyx {ymin:g} {xmin:g} {ymax:g} {xmax:g} in {size[0]:g}x{size[1]:g}"
        report(Finding(kind or Kind.BEYOND, name, f"'{thing.label}' {corners}"))
    return None if kind is not None else clipped
