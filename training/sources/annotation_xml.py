"""What Pascal VOC and ImageNet share: XML files of one image's size and objects, and class names by WordNet id."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from training.sources.checks import Finding, Kind, ReportFinding, Thing

MOST_BYTES = 4 << 20
UNREADABLE = (OSError, ValueError, LookupError, ElementTree.ParseError)  # LookupError: an encoding that is none


class Annotation(NamedTuple):
    """What a file says: the image's file name, its (width, height) in pixels - 0 where not said - and its objects."""

    filename: str
    size: tuple[float, float]
    things: list[Thing]


def read_annotation(path: Path, name: str, report: ReportFinding) -> Annotation | None:
    """Read the annotation of the image `name`; None, reported, where there is none or it can't be read."""
    try:
        root = _parse(path)
    except FileNotFoundError:
        report(Finding(Kind.MISSING_ANNOTATION, name, f"no {path}"))
        return None
    except UNREADABLE as error:
        report(Finding(Kind.BAD_ANNOTATION, name, f"{path}: {error}"))
        return None
    width, height = (_number(root, f"size/{side}") for side in ("width", "height"))
    size = (width, height) if width > 0 and height > 0 else (0.0, 0.0)
    return Annotation((root.findtext("filename") or "").strip(), size, [_thing(item) for item in root.iter("object")])


def class_names_in(paths: Iterable[Path]) -> tuple[str, ...]:
    """List the classes of all annotations that can be read, sorted."""
    found: set[str] = set()
    for path in paths:
        try:
            found |= {(item.text or "").strip() for item in _parse(path).findall("object/name")}
        except UNREADABLE:
            continue  # reported when it is read for its boxes
    return tuple(sorted(found - {""}))


def short_names(words: Mapping[str, str]) -> dict[str, str]:
    """Shorten WordNet's words to those before the first comma, by id; names that several share have the id after."""
    names = {wnid: text.split(",")[0].strip() for wnid, text in words.items()}
    shared = {name for name, count in Counter(names.values()).items() if count > 1}
    return {wnid: f"{name} ({wnid})" if name in shared else name for wnid, name in names.items()}


def _parse(path: Path) -> ElementTree.Element:
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"larger than {MOST_BYTES >> 20} MiB")
    return ElementTree.parse(path).getroot()


def _thing(item: ElementTree.Element) -> Thing:
    ymin, xmin, ymax, xmax = (_number(item, f"bndbox/{edge}") for edge in ("ymin", "xmin", "ymax", "xmax"))
    flags = {flag: (item.findtext(flag) or "0").strip() == "1" for flag in ("difficult", "truncated", "occluded")}
    return Thing((item.findtext("name") or "").strip(), (ymin, xmin, ymax, xmax), **flags)


def _number(element: ElementTree.Element, path: str) -> float:
    try:
        return float(element.findtext(path) or "")
    except ValueError:
        return math.nan
