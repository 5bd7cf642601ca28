"""Files of tf.Examples with the keys of the Object Detection API: `tfrecord:GLOB`."""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import tensorflow as tf

from overfeat_tf.images.decode import read_size
from training.sources.checks import AnnotatedObject, Finding, Kind, ReportFinding, make_record
from training.sources.file_source import ExampleSource
from training.sources.listing import is_junk
from training.sources.record import Record
from training.sources.splits import NAMES, split_of, split_of_path
from training.sources.text import as_number, is_set, one_line, read_text

BOX = "image/object/bbox/"
FLAGS = {
    "difficult": ("image/object/difficult",),
    "crowd": ("image/object/is_crowd", "image/object/group_of"),
    "truncated": ("image/object/truncated",),
    "occluded": ("image/object/occluded",),
}
# An item of a label map, and the values in it.
ITEM, VALUE = re.compile(r"item\s*\{(.*?)\}", re.DOTALL), re.compile(r"(\w+)\s*:\s*(?:\"([^\"]*)\"|'([^']*)'|(-?\d+))")

T = TypeVar("T")
Value = bytes | int | float
Example = dict[str, list[Value]]


class LabelItem(NamedTuple):
    """An item of a label map."""

    id: int
    name: str
    display_name: str


class TfRecords(ExampleSource):
    """Files of serialized tf.Examples: `image/encoded`, `image/object/bbox/xmin` and so on, normalised, and
    `image/object/class/text` or `image/object/class/label`; or `image/class/text` or `image/class/label` alone.

    A file's split is that of its name or of its folder, else "train". Classes are those of a label map (`*.pbtxt`)
    beside the files or above them, by rising id; else the names in all examples, by rising label, or sorted. The order
    is that of the files.

    Raises:
        ValueError: no file, or none that has examples of images.
    """

    def __init__(self, pattern: str, report: ReportFinding):
        super().__init__(f"tfrecord:{pattern}", report)
        self._files = _by_split(pattern)
        if not self._files:
            raise ValueError(f"expected files of tf.Examples; '{pattern}' matches none")
        self.splits = tuple(self._files)
        self._ends: dict[str, str] = {}  # files that end in damage
        self._told: set[Path] = set()  # those of them that are reported

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        names = tuple(dict.fromkeys(self._by_label.values()))
        if not names:
            example = next(example for split in self.splits for _, example in self._examples(split))
            keys = ", ".join(sorted(example))
            raise ValueError(
                f"expected examples with classes in {self.name}, as image/class/ or image/object/class/text or label; "
                f"the first has {keys:.120}"
            )
        return names

    @property
    def boxed(self) -> bool:  # type: ignore[override]
        return self._found[1]

    def _image(self, example: Example) -> bytes:
        return _encoded(example)

    def _record(self, name: str, example: Example) -> Record | None:
        data, classes = self._image(example), self._classes
        if not data:
            self._report(Finding(Kind.MISSING_IMAGE, name, "no image/encoded"))
            return None
        if not self.boxed:
            label = self._label(_first(example, "image/class/text", b""), _first(example, "image/class/label", None))
            return make_record(data, name, (), classes, self._report, image_class=label)
        width, height = (_number(_first(example, f"image/{side}", 0)) for side in ("width", "height"))
        if not min(width, height) > 0:
            try:  # of an image that is shown turned, nobody says which way its boxes lie
                height, width = read_size(data)[0]
            except ValueError as error:
                self._report(Finding(Kind.UNREADABLE, name, str(error)))
                return None
        objects = list(self._read_objects(example))
        for one in objects:
            if any(not -1 <= edge <= 2 for edge in one.corners if not math.isnan(edge)):
                corners = "yxyx {:g} {:g} {:g} {:g}".format(*one.corners)
                self._report(Finding(Kind.NOT_NORMALISED, name, f"{one.where}: '{one.label}' {corners}"))
                return None
        return make_record(data, name, objects, classes, self._report, stated=(width, height), normalised=True)

    def _read_objects(self, example: Example) -> Iterator[AnnotatedObject]:
        sides = [example.get(f"{BOX}{edge}", []) for edge in ("ymin", "xmin", "ymax", "xmax")]
        texts, labels = (example.get(f"image/object/class/{key}", []) for key in ("text", "label"))
        count = max(map(len, (*sides, texts, labels)))
        for i in range(count):
            corners = tuple(_number(side[i]) if i < len(side) else math.nan for side in sides)
            marks = {
                flag: any(is_set(example[key][i]) for key in keys if i < len(example.get(key, [])))
                for flag, keys in FLAGS.items()
            }
            label = self._label(texts[i] if i < len(texts) else b"", labels[i] if i < len(labels) else None)
            yield AnnotatedObject(label, corners, **marks, where=f"object {i + 1}")  # type: ignore[arg-type]

    def _label(self, text: Value, label: Value | None) -> str:
        return one_line(_text(text)) or self._by_label.get(_id(label), f"label {_id(label)}")

    @cached_property
    def _by_label(self) -> dict[int | None, str]:
        """Class names by the labels of the examples; -1 and below for those without."""
        paths = [path for files in self._files.values() for path in files]
        places = dict.fromkeys(folder for path in paths for folder in (path.parent, path.parent.parent))
        maps = [path for folder in places for path in sorted(folder.glob("*.pbtxt")) if not is_junk(path.name)]
        texts, labels = self._found[0], set(self._found[2])
        for path in maps:
            if items := read_label_map(path):  # a graph's text has the suffix too
                return self._named(path, items, texts)
        if texts and all(label is not None for label in texts.values()):
            by_label = {label: name for name, label in texts.items()}
            if len(by_label) == len(texts):
                return dict(sorted(by_label.items()))
        if texts:
            return dict(enumerate(sorted(texts), start=-len(texts)))  # type: ignore[arg-type]
        return {label: f"class {label}" for label in sorted(labels)}

    def _named(self, path: Path, items: list[LabelItem], texts: Collection[str]) -> dict[int | None, str]:
        """Return the names of a label map by id: of names and display names those that the examples have."""
        named = {item.id: item.name for item in items}
        shown = {item.id: item.display_name or item.name for item in items}
        if len(set(shown.values()) & set(texts)) >= len(set(named.values()) & set(texts)):
            named = shown
        problems = [f"{count} items have the id {number}" for number, count in _repeated(item.id for item in items)]
        if lacking := sorted(set(texts) - set(named.values())):
            problems.append(f"examples have {', '.join(lacking[:5])}, which it lacks")
        self._findings += [Finding(Kind.CLASS_LIST, path.name, problem) for problem in problems]
        for name, count in _repeated(named.values()):
            self._findings.append(Finding(Kind.SAME_NAME, name, f"{count} ids in {path.name}"))
        return dict(sorted(named.items()))

    @cached_property
    def _found(self) -> tuple[dict[str, int | None], bool, frozenset[int]]:
        """The names of classes with a label each, whether there are boxes, and the labels."""
        texts: dict[str, int | None] = {}
        labels: set[int] = set()
        boxed, count = False, 0
        for split in self.splits:
            for _, example in self._examples(split):
                count += 1
                of_objects = any(key.startswith("image/object/") for key in example)
                boxed |= of_objects
                kind = "image/object/class" if of_objects else "image/class"
                numbers = list(map(_id, example.get(f"{kind}/label", [])))
                labels |= {label for label in numbers if label is not None}
                for i, text in enumerate(example.get(f"{kind}/text", [])):
                    if name := one_line(_text(text)):
                        texts.setdefault(name, numbers[i] if i < len(numbers) else None)
        if not count:
            raise ValueError(
                f"expected tf.Examples in {self.name}; {next(iter(self._ends.values()), 'there are none')}"
            )
        return texts, boxed, frozenset(labels)

    def _examples(self, split: str, report: ReportFinding | None = None) -> Iterator[tuple[str, Example]]:
        """Yield the split's examples and their ids: image/filename, image/source_id or file and place; each id once."""
        seen: set[str] = set()
        for path in self._files[split]:
            with path.open("rb") as file:
                kind = "GZIP" if file.read(2) == b"\x1f\x8b" else ""
            rows = iter(tf.data.TFRecordDataset(str(path), compression_type=kind).prefetch(4))
            for number in range(1 << 62):
                try:
                    example = _parse(next(rows).numpy())
                except StopIteration:
                    break
                except (tf.errors.OpError, ValueError) as error:
                    why = re.sub(r"\{\{.*?\}\}|\[Op:.*?\]", "", str(error))  # where in TensorFlow
                    self._ends[str(path)] = f"'{path}' is damaged: {' '.join(why.split()):.120}"
                    if report is not None and path not in self._told:  # once, however often the file is read
                        self._told.add(path)
                        report(Finding(Kind.BAD_ANNOTATION, f"{path.name}#{number}", self._ends[str(path)]))
                    break
                stated = (_text(_first(example, f"image/{key}", b"")) for key in ("filename", "source_id"))
                name = next(filter(None, stated), f"{path.name}#{number}")
                if name in seen:  # a name alone is no id
                    name = f"{name} ({path.name}#{number})"
                seen.add(name)
                yield name, example


def read_label_map(path: Path) -> list[LabelItem]:
    """Read a label map of the Object Detection API: its items that have a number as their id."""
    found = []
    for item in ITEM.findall(read_text(path)):
        values = {key: one_line("".join(options)) for key, *options in VALUE.findall(item)}
        if isinstance(number := as_number(values.get("id")), int):
            display = values.get("display_name", "")
            found.append(LabelItem(number, values.get("name") or display or f"class {number}", display))
    return found


def _repeated(values: Iterable[T]) -> list[tuple[T, int]]:
    """Return what is there more than once, and how often."""
    return [(value, count) for value, count in Counter(values).items() if count > 1]


def _by_split(pattern: str) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    parts = Path(pattern).parts
    free = next((place for place, part in enumerate(parts) if re.search(r"[*?[]", part)), len(parts))
    for path in sorted(Path(name) for name in glob(pattern, recursive=True)):
        if path.is_file() and not path.name.endswith(".pbtxt"):
            folders = path.parts[min(free, len(path.parts) - 2) : -1]  # not those above, where the user keeps all data
            split = split_of(path.name.partition(".")[0]) or split_of_path(folders[::-1]) or "train"
            found.setdefault(split, []).append(path)
    return {split: found[split] for split in dict.fromkeys(NAMES.values()) if split in found}


def _parse(data: bytes) -> Example:
    """Return the lists of an example's features.

    Raises:
        ValueError: no tf.Example.
    """
    example = tf.train.Example()
    try:
        example.ParseFromString(data)
    except Exception as error:  # protobuf's own class, of which there are several
        raise ValueError("no tf.Example") from error
    lists = {}
    for key, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        lists[key] = list(getattr(feature, kind).value) if kind else []
    return lists


def _first(example: Example, key: str, default: Any) -> Any:
    values = example.get(key) or [default]
    return values[0]


def _encoded(example: Example) -> bytes:
    """Return an example's encoded image; b"" where it has none."""
    data = _first(example, "image/encoded", b"")
    return data if isinstance(data, bytes) else b""


def _text(value: Value) -> str:
    """Return a value of a feature as text, of whichever kind it was written."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(int(value)) if float(value).is_integer() else str(value)


def _number(value: Value) -> float:
    """Return a value of a feature as a number; nan where it is none."""
    try:
        return float(value)
    except ValueError:
        return math.nan


def _id(value: Value | None) -> int | None:
    """Return a label as it can be compared, 3 for b"3" and for 3.0; None where it is no whole number."""
    number = as_number(_text(value)) if value is not None else None
    return number if isinstance(number, int) else None
