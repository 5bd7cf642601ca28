"""Files of tf.Examples with the keys of the Object Detection API: `tfrecord:GLOB`."""

import math
import re
from collections.abc import Iterator
from functools import cached_property
from glob import glob
from pathlib import Path

import tensorflow as tf

from training.sources.checks import Finding, Kind, ReportFinding, Thing, make_record, read_size
from training.sources.file_source import ExampleSource
from training.sources.record import Record
from training.sources.splits import NAMES, split_of, split_of_path
from training.sources.text import one_line, read_text

BOX = "image/object/bbox/"
FLAGS = {
    "difficult": ("image/object/difficult",),
    "crowd": ("image/object/is_crowd", "image/object/group_of"),
    "truncated": ("image/object/truncated",),
    "occluded": ("image/object/occluded",),
}
# An item of a label map, and the values in it.
ITEM, VALUE = re.compile(r"item\s*\{(.*?)\}", re.DOTALL), re.compile(r"(\w+)\s*:\s*(?:\"([^\"]*)\"|'([^']*)'|(-?\d+))")

Example = dict[str, list]


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
            raise ValueError(f"expected examples with classes in {self.name}; there are none")
        return names

    @property
    def boxed(self) -> bool:  # type: ignore[override]
        return self._found[1]

    def _image(self, example: Example) -> bytes:
        return _first(example, "image/encoded", b"")

    def _record(self, name: str, example: Example) -> Record | None:
        data, classes = self._image(example), self._classes
        if not data:
            self._report(Finding(Kind.MISSING_IMAGE, name, "no image/encoded"))
            return None
        if not self.boxed:
            label = self._label(_first(example, "image/class/text", b""), _first(example, "image/class/label", None))
            return make_record(data, name, (), classes, self._report, image_class=label)
        width, height = (float(_first(example, f"image/{side}", 0)) for side in ("width", "height"))
        if min(width, height) <= 0:
            try:  # of an image that is shown turned, nobody says which way its boxes lie
                width, height = read_size(data)[0]
            except ValueError as error:
                self._report(Finding(Kind.UNREADABLE, name, str(error)))
                return None
        things = list(self._things(example))
        if any(not -1 <= edge <= 2 for thing in things for edge in thing.corners if not math.isnan(edge)):
            self._report(Finding(Kind.NOT_NORMALISED, name, f"{things[0].corners}"))
            return None
        return make_record(data, name, things, classes, self._report, stated=(width, height), normalised=True)

    def _things(self, example: Example) -> Iterator[Thing]:
        sides = [example.get(f"{BOX}{edge}", []) for edge in ("ymin", "xmin", "ymax", "xmax")]
        texts, labels = (example.get(f"image/object/class/{key}", []) for key in ("text", "label"))
        count = max(map(len, (*sides, texts, labels)))
        for i in range(count):
            corners = tuple(float(side[i]) if i < len(side) else math.nan for side in sides)
            marks = {
                flag: any(bool(example[key][i]) for key in keys if i < len(example.get(key, [])))
                for flag, keys in FLAGS.items()
            }
            label = self._label(texts[i] if i < len(texts) else b"", labels[i] if i < len(labels) else None)
            marks["difficult"] |= marks["crowd"]
            yield Thing(label, corners, **marks)  # type: ignore[arg-type]

    def _label(self, text: bytes, label: int | None) -> str:
        return one_line(text.decode(errors="replace")) or self._by_label.get(label, f"label {label}")

    @cached_property
    def _by_label(self) -> dict[int | None, str]:
        """Class names by the labels of the examples; -1 and below for those without."""
        paths = [path for files in self._files.values() for path in files]
        places = dict.fromkeys(folder for path in paths for folder in (path.parent, path.parent.parent))
        maps = [path for folder in places for path in sorted(folder.glob("*.pbtxt"))]
        named = read_label_map(maps[0]) if maps else {}
        texts, labels = self._found[0], set(self._found[2])
        if named and set(texts) - set(named.values()):
            self._report_later(maps[0], sorted(set(texts) - set(named.values())))
        if named:
            return {label: name for label, name in named.items()}
        if texts and all(label is not None for label in texts.values()):
            by_label = {label: name for name, label in texts.items()}
            if len(by_label) == len(texts):
                return dict(sorted(by_label.items()))
        if texts:
            return dict(enumerate(sorted(texts), start=-len(texts)))  # type: ignore[arg-type]
        return {label: f"class {label}" for label in sorted(labels)}

    def _report_later(self, path: Path, names: list[str]) -> None:
        self._report(Finding(Kind.CLASS_LIST, path.name, f"examples have {', '.join(names[:5])}, which it lacks"))

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
                numbers = example.get(f"{kind}/label", [])
                labels |= set(numbers)
                for i, text in enumerate(example.get(f"{kind}/text", [])):
                    name = one_line(text.decode(errors="replace"))
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
                    self._ends[str(path)] = f"'{path}' is damaged: {' '.join(str(error).split()):.120}"
                    if report is not None and path not in self._told:  # once, however often the file is read
                        self._told.add(path)
                        report(Finding(Kind.BAD_ANNOTATION, f"{path.name}#{number}", self._ends[str(path)]))
                    break
                stated = _first(example, "image/filename", b"") or _first(example, "image/source_id", b"")
                name = stated.decode(errors="replace") or f"{path.name}#{number}"
                if name in seen:  # a name alone is no id
                    name = f"{name} ({path.name}#{number})"
                seen.add(name)
                yield name, example


def read_label_map(path: Path) -> dict[int, str]:
    """Read a label map of the Object Detection API, items of an id and a name, by rising id."""
    found = {}
    for item in ITEM.findall(read_text(path)):
        values = {key: "".join(options) for key, *options in VALUE.findall(item)}
        if "id" in values:
            found[int(values["id"])] = one_line(values.get("name") or values.get("display_name") or values["id"])
    return dict(sorted(found.items()))


def _by_split(pattern: str) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(Path(name) for name in glob(pattern, recursive=True)):
        if path.is_file() and not path.name.endswith(".pbtxt"):
            split = split_of(path.name.partition(".")[0]) or split_of_path(path.parts[-2:-4:-1]) or "train"
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


def _first(example: Example, key: str, default):
    values = example.get(key) or [default]
    return values[0]
