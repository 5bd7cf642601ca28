"""The checking of records in one place: what an annotation says, held against its image.

Boxes lie in the image as displayed, with its EXIF orientation applied, as `overfeat_tf.images.decode` shows it.
A source hands what it has read to `make_record` and says what is wrong to its report; nothing here stops a run.
"""

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import numpy as np

from overfeat_tf.images.decode import read_size
from overfeat_tf.images.files import read_image
from training.sources.record import FLAGS, Record

SAME_DECIMALS = 4  # decimals of normalised corners in which two boxes of one object agree
FARTHEST = 2.0  # edges beyond it are pixels, not shares of the image
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
    NOT_NORMALISED = "coordinates beyond 0 to 1", "skipped", True
    UNKNOWN_CLASS = "class not listed", "left out", True
    NO_NUMBERS = "box without numbers", "left out", True
    NO_AREA = "box without area", "left out", True
    REVERSED = "box whose corners are reversed", "left out", True
    OUTSIDE = "box outside the image", "left out", True
    OBJECT_TWICE = "object annotated twice", "left out", True
    LISTED_TWICE = "image listed more than once", "used once", True
    CLASS_LIST = "classes that contradict each other", "kept", True
    SAME_NAME = "categories that share a name", "merged", True
    TWO_CLASSES = "same image with two classes", "kept", True
    LEAK = "same image in two splits", "kept", True
    DUPLICATE = "duplicate image", "kept", False
    BEYOND = "box beyond the edge", "clipped", False
    OTHER_SIZE = "annotated at another size", "scaled", False
    TURNED = "EXIF orientation", "shown upright", False
    TINY = "tiny image", "kept", False
    HUGE = "huge image", "kept", False
    ONE_SPLIT = "class in one split only", "kept", False
    NO_OBJECTS = "class without objects", "kept", False
    ALIKE = "class names that look alike", "kept", False
    NO_SPLIT = "split that is not there", "skipped", False
    GROUP = "category that only groups others", "no class", False

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
    """The report of a run: each fault gets one warning, however often the record is read."""

    def __init__(self) -> None:
        self._said: set[Finding] = set()

    def __call__(self, finding: Finding) -> None:
        """Log a fault unless it is known."""
        if finding.kind.fault and finding not in self._said:
            self._said.add(finding)
            log.warning("%s", finding)


@dataclass(frozen=True)
class AnnotatedObject:
    """An object as its annotation has it.

    Attributes:
        label: Its class's name in the annotation.
        corners: ymin, xmin, ymax, xmax in pixels; nan where the annotation has no number.
        difficult, crowd, truncated, occluded, boxed: As in `Record`.
        where: Its place in its file, such as "line 7", for what is found wrong with it.
    """

    label: str
    corners: tuple[float, float, float, float]
    difficult: bool = False
    crowd: bool = False
    truncated: bool = False
    occluded: bool = False
    boxed: bool = True
    where: str = ""


def read_file(path: Path, name: str, report: ReportFinding) -> bytes | None:
    """Return an image file's bytes, as `read_image` does; None, reported, where it can't be read."""
    data, problem = read_image(path)
    if problem:
        report(Finding(Kind.UNREADABLE if os.path.lexists(path) else Kind.MISSING_IMAGE, name, f"{path}: {problem}"))
        return None
    return data


def are_shares(edges: np.ndarray) -> bool:
    """Return whether a file's edges of boxes, nan or not, are shares of the image: some are, and none is far beyond."""
    return bool(((edges > 0) & (edges < 1)).any() and not (edges > FARTHEST).any())


def make_record(
    data: bytes,
    name: str,
    objects: Iterable[AnnotatedObject],
    classes: Mapping[str, int],
    report: ReportFinding,
    *,
    stated: tuple[float, float] = (0, 0),
    first: int = 0,
    normalised: bool = False,
    image_class: str | None = None,
) -> Record | None:
    """Make a record of an image and its annotation, without the objects that can't be used.

    Args:
        data: The encoded image.
        name: Its id.
        objects: Its objects.
        classes: Labels by the names that annotations have.
        report: Is told of everything that is wrong.
        stated: The image's (width, height) as the annotation has it, 0 where it does not. One of the image's shape
            but another size is what the boxes are scaled by.
        first: Number of the first pixel: 1 in Pascal VOC, else 0.
        normalised: The corners are shares of the image as displayed, in place of pixels.
        image_class: The class of the image. It labels the image, without a box, if no object is left.

    Returns:
        None where the record can't be used.
    """
    boxes: list[tuple[float, ...]] = []
    kept: list[AnnotatedObject] = []
    if objects := list(objects):
        size = _annotated_size(data, name, stated, report)
        if size is None:
            return None
        known = set()
        for one in objects:
            one = replace(one, difficult=one.difficult or one.crowd)
            if normalised:
                sides = (size[1], size[0]) * 2
                corners = tuple(edge * side for edge, side in zip(one.corners, sides, strict=True))
                one = replace(one, corners=corners)  # type: ignore[arg-type]
            box = _box(one, name, classes, size, first, report)
            if box is None:
                continue
            marks = tuple(getattr(one, flag) for flag in FLAGS)
            if (same := (classes[one.label], marks, *(round(edge, SAME_DECIMALS) for edge in box))) in known:
                report(Finding(Kind.OBJECT_TWICE, name, _describe(one, size)))
                continue
            known.add(same)
            boxes.append(box)
            kept.append(one)
    if image_class is not None and not kept:
        if image_class in classes:
            return Record.of_class(data, name, classes[image_class])
        report(Finding(Kind.UNKNOWN_CLASS, name, f"'{image_class}'"))
        return None
    flags = {flag: [getattr(one, flag) for one in kept] for flag in ("boxed", *FLAGS)}
    return Record.of_objects(data, name, boxes, [classes[one.label] for one in kept], **flags)


def _annotated_size(
    data: bytes, name: str, stated: tuple[float, float], report: ReportFinding
) -> tuple[float, float] | None:
    """Return the (width, height) that the boxes are in; None, reported, where that can't be told."""
    try:
        stored, shown = (size[::-1] for size in read_size(data)[:2])
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
    one: AnnotatedObject,
    name: str,
    classes: Mapping[str, int],
    size: tuple[float, float],
    first: int,
    report: ReportFinding,
) -> tuple[float, ...] | None:
    """Return an object's box as normalised yxyx; None, reported, where it can't be used."""
    ymin, xmin, ymax, xmax = one.corners
    edges = (ymin - first, xmin - first, ymax, xmax)
    sides = (size[1], size[0]) * 2
    # In the record's own precision, in which a sliver may have no area.
    clipped = tuple(float(np.float32(min(max(edge / side, 0.0), 1.0))) for edge, side in zip(edges, sides, strict=True))
    beyond = max(-min(edges), max(edge - side for edge, side in zip(edges, sides, strict=True)))
    reversed_axes = [f"{a}max < {a}min" for a, low, high in (("x", xmin, xmax), ("y", ymin, ymax)) if low > high]
    kind = None
    if one.label not in classes:
        kind = Kind.UNKNOWN_CLASS
    elif not all(map(math.isfinite, edges)):
        kind = Kind.NO_NUMBERS
    elif reversed_axes:
        kind = Kind.REVERSED
    elif ymin == ymax or xmin == xmax:
        kind = Kind.NO_AREA
    elif clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        kind = Kind.OUTSIDE
    if kind is not None or beyond > ROUNDING:
        remedy = f": {' and '.join(reversed_axes)}: swap them" if kind is Kind.REVERSED else ""
        report(Finding(kind or Kind.BEYOND, name, f"{_describe(one, size)}{remedy}"))
    return None if kind is not None else clipped


def _describe(one: AnnotatedObject, size: tuple[float, float]) -> str:
    where = f"{one.where}: " if one.where else ""
    return "{}'{}' yxyx {:g} {:g} {:g} {:g} in {:g}x{:g}".format(where, one.label, *one.corners, *size)
