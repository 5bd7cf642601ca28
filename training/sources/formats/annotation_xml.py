"""What Pascal VOC and ImageNet share: XML files of one image's size and objects, and class names by WordNet id."""

import codecs
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from training.sources.checks import AnnotatedObject, Finding, Kind, ReportFinding
from training.sources.text import is_set, one_line, to_float

MOST_BYTES = 4 << 20
DECLARED = re.compile(rb"""<\?xml[^>]*?encoding=["']([\w.-]+)["']""")
UNREADABLE = (OSError, ValueError, LookupError, ElementTree.ParseError)  # LookupError: an encoding that is none


class Annotation(NamedTuple):
    """What a file says: the image's file name, its (width, height) in pixels - 0 where not said - and its objects."""

    filename: str
    size: tuple[float, float]
    objects: list[AnnotatedObject]


def read_annotation(path: Path, name: str, report: ReportFinding) -> Annotation | None:
    """Read the annotation of the image `name`; None, reported, where there is none or it can't be read."""
    try:
        root = parse_xml(path)
    except FileNotFoundError:
        report(Finding(Kind.MISSING_ANNOTATION, name, f"no {path}"))
        return None
    except UNREADABLE as error:
        report(Finding(Kind.BAD_ANNOTATION, name, f"{path}: {error}"))
        return None
    width, height = (to_float(root.findtext(f"size/{side}")) for side in ("width", "height"))
    size = (width, height) if width > 0 and height > 0 else (0.0, 0.0)
    objects = [_object(item) for item in root.iter("object")]
    if not objects and next(root.iter("bndbox"), None) is not None:  # of no object, so in nobody's layout
        report(Finding(Kind.BAD_ANNOTATION, name, f"{path}: expected <object> around <bndbox>; there is none"))
        return None
    return Annotation((root.findtext("filename") or "").strip(), size, objects)


def may_be_annotation(path: Path) -> bool:
    """Return whether an XML file is an annotation, or can't be read and is reported where it is used."""
    try:
        return path.stat().st_size > MOST_BYTES or ElementTree.parse(path).getroot().tag != "annotations"  # of CVAT
    except UNREADABLE:
        return True


def image_name_in(path: Path | None) -> str:
    """Return the image's file name that an annotation has; "" where it has none or can't be read."""
    try:
        return (parse_xml(path).findtext("filename") or "").strip() if path is not None else ""
    except UNREADABLE:
        return ""


def class_names_in(paths: Iterable[Path]) -> tuple[str, ...]:
    """List the classes of all annotations that can be read, sorted."""
    found: set[str] = set()
    for path in paths:
        try:
            found |= {one_line(item.findtext("name") or "") for item in parse_xml(path).iter("object")}
        except UNREADABLE:
            continue  # reported when it is read for its boxes
    return tuple(sorted(found - {""}))


def short_names(words: Mapping[str, str]) -> dict[str, str]:
    """Shorten WordNet's words to those before the first comma, by id; names that several share have the id after."""
    names = {wnid: text.split(",")[0].strip() for wnid, text in words.items()}
    shared = {name for name, count in Counter(names.values()).items() if count > 1}
    return {wnid: f"{name} ({wnid})" if name in shared else name for wnid, name in names.items()}


def parse_xml(path: Path) -> ElementTree.Element:
    """Return the root of an annotation's file.

    Raises:
        ValueError, OSError, LookupError, ParseError: it is none (`UNREADABLE`).
    """
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"larger than {MOST_BYTES >> 20} MiB")
    data = path.read_bytes()
    marked = data.startswith(codecs.BOM_UTF8)
    data = data.removeprefix(codecs.BOM_UTF8).lstrip(b" \t\r\n")  # neither of which expat has before a declaration
    content: bytes | str = data
    declared = DECLARED.match(data)
    if declared is not None:  # expat knows few encodings; of decoded text it heeds no declaration
        encoding = declared[1].decode()
        # A declaration of one byte a character is in no UTF-16: .NET's programs write it of UTF-8.
        utf8 = marked or encoding.lower().startswith(("utf-16", "utf-32"))
        content = data.decode("utf-8" if utf8 else encoding)
    root = ElementTree.fromstring(content)
    for element in root.iter():  # in any case, and in any namespace
        if isinstance(element.tag, str):
            element.tag = element.tag.rpartition("}")[2].lower()
    if root.tag != "annotation":
        raise ValueError(f"expected <annotation>; got <{root.tag}>")
    return root


def _object(item: ElementTree.Element) -> AnnotatedObject:
    ymin, xmin, ymax, xmax = (to_float(item.findtext(f"bndbox/{edge}")) for edge in ("ymin", "xmin", "ymax", "xmax"))
    if item.find("bndbox") is None:  # LabelMe's outlines
        xs, ys = ([to_float(point.findtext(axis)) for point in item.iterfind("polygon/pt")] for axis in "xy")
        if xs:
            ymin, xmin, ymax, xmax = min(ys), min(xs), max(ys), max(xs)
    flags: dict[str, Any] = {
        flag: is_set((item.findtext(flag) or "").strip()) for flag in ("difficult", "truncated", "occluded")
    }
    return AnnotatedObject(one_line(item.findtext("name") or ""), (ymin, xmin, ymax, xmax), **flags)
