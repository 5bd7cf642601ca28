"""Records that come as tf.data: dictionaries with an image, its boxes and its labels, for each split."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from overfeat_tf.images.decode import read_size
from overfeat_tf.images.files import as_pixels
from training.sources.checks import FARTHEST, AnnotatedObject, ReportFinding, make_record
from training.sources.record import FLAGS, SCHEMA, Record, Source, check_split
from training.sources.text import one_line

Data: TypeAlias = str | Source | tf.data.Dataset | Mapping[str, tf.data.Dataset]  # what `open_data` opens


class DatasetSource:
    """Records of a `tf.data.Dataset` for each split.

    An element is a dictionary. It has keys of `SCHEMA`. Some may be missing; other keys are ignored:

    - "image_bytes", an encoded image; or "image", pixels as `images.files.as_pixels` takes them;
    - "labels" int [n] from 0, or the classes' names, string [n]; or "label", a scalar;
    - "boxes" float [n, 4], [ymin, xmin, ymax, xmax] normalised to 0..1; without it each image has one class alone;
    - "image_id", and "boxed", "difficult", "crowd", "truncated" and "occluded", bool [n].

    A run that resumes needs the records in the order that they had.

    Args:
        splits: The data by split; a single data set is the split "train".
        class_names: By label; if left out, the labels of all splits are read, once: names in their order, or "0", "1"
            and so on.
        report: Is told of what is wrong with the records.

    Raises:
        ValueError: no such elements, or a data set without an end.
    """

    name = "tf.data"

    def __init__(
        self,
        splits: tf.data.Dataset | Mapping[str, tf.data.Dataset],
        class_names: Sequence[str] | None,
        report: ReportFinding,
    ):
        self._data = {"train": splits} if isinstance(splits, tf.data.Dataset) else dict(splits)
        self._report = report
        for split, data in self._data.items():
            _check_elements(split, data)
        self.splits = tuple(self._data)
        self.boxed = any("boxes" in data.element_spec for data in self._data.values())
        names = class_names if class_names is not None else self._read_names()
        self.class_names = tuple(map(one_line, names))
        if len(set(self.class_names)) < len(self.class_names):
            raise ValueError(f"expected class names that differ; got {', '.join(self.class_names)[:120]}")

    def records(self, split: str, limit: int | None = None) -> Iterator[Record]:
        """Yield the split's records, the first `limit` of them."""
        check_split(self, split)
        classes = {name: label for label, name in enumerate(self.class_names)}
        for number, element in enumerate(islice(_arrays(self._data[split]), limit)):
            record = self._record(element, number, classes)
            if record is not None:
                yield record

    def images(self, split: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """Yield the ids of the split's images, and what gives their bytes."""
        for number, element in enumerate(_arrays(self._data[split])):
            yield _name(element, number), partial(_image, element)

    def _record(self, element: dict[str, Any], number: int, classes: Mapping[str, int]) -> Record | None:
        name, data = _name(element, number), _image(element)
        labels = [self._class_name(label) for label in np.ravel(element["labels" if "labels" in element else "label"])]
        if "boxes" not in element:
            if len(labels) > 1:
                raise ValueError(f"expected one label for image '{name}', which has no boxes; got {len(labels)}")
            return make_record(data, name, (), classes, self._report, image_class=labels[0] if labels else None)
        boxes = np.reshape(element["boxes"], (-1, 4)).astype(np.float64)
        if len(boxes) != len(labels):
            raise ValueError(f"expected a label for each box of image '{name}'; got {len(labels)} for {len(boxes)}")
        flags = {flag: np.ravel(element[flag]) for flag in ("boxed", *FLAGS) if flag in element}
        if "boxed" in flags:
            boxes[~flags["boxed"]] = (0, 0, 1, 1)
        if np.any(np.abs(boxes) > FARTHEST):
            raise ValueError(
                f"expected boxes [ymin, xmin, ymax, xmax] from 0 to 1; image '{name}' has {np.abs(boxes).max():g}: "
                "divide them by its height and width"
            )
        try:
            height, width = read_size(data)[1]
        except ValueError:  # reported with the record
            width, height = 1, 1
        objects = [
            AnnotatedObject(
                label,
                tuple(float(edge) for edge in box * (height, width, height, width)),  # type: ignore[arg-type]
                **{flag: bool(values[index]) for flag, values in flags.items()},  # type: ignore[arg-type]
            )
            for index, (label, box) in enumerate(zip(labels, boxes, strict=True))
        ]
        return make_record(data, name, objects, classes, self._report)

    def _class_name(self, label: Any) -> str:
        if isinstance(label, bytes | str):
            return one_line(_text(label))
        # Another's number may be the name of a class.
        return self.class_names[label] if 0 <= label < len(self.class_names) else f"label {label}"

    def _read_names(self) -> tuple[str, ...]:
        labels = set()
        for data in self._data.values():
            key = "labels" if "labels" in data.element_spec else "label"
            for element in _arrays(data.map(lambda element, key=key: {key: element[key]})):
                labels |= set(np.ravel(element[key]).tolist())
        if not labels:
            raise ValueError("expected elements with labels in the tf.data.Dataset; it has none")
        if isinstance(next(iter(labels)), int):
            return tuple(str(label) for label in range(max(labels) + 1))
        return tuple(sorted({one_line(_text(label)) for label in labels}))


def _check_elements(split: str, data: object) -> None:
    """Raise ValueError unless a split's elements can be records."""
    if not isinstance(data, tf.data.Dataset):
        raise ValueError(f"expected a tf.data.Dataset as split '{split}'; got '{type(data).__name__}'")
    spec = data.element_spec
    keys = spec.keys() if isinstance(spec, dict) else ()
    if not ({"image", "image_bytes"} & set(keys) and {"labels", "label"} & set(keys)):
        found = ", ".join(sorted(keys)) if keys else f"'{type(spec).__name__}'"
        needed = "image or image_bytes, labels, and perhaps boxes"
        raise ValueError(f"expected dictionaries with {needed} in split '{split}'; got {found}")
    for key in (SCHEMA.keys() | {"image", "label"}) & spec.keys():
        if not isinstance(spec[key], tf.TensorSpec | tf.RaggedTensorSpec):
            kind = type(spec[key]).__name__
            raise ValueError(
                f"expected {key} as a dense or ragged tensor in split '{split}'; got '{kind}': "
                "take tf.sparse.to_dense, or the part that is meant"
            )
    for key in {"labels", "label"} & spec.keys():
        if not (spec[key].dtype.is_integer or spec[key].dtype == tf.string):
            raise ValueError(
                f"expected {key} of whole numbers or names in split '{split}'; got {spec[key].dtype.name}: cast them, "
                "or take the argmax of one-hot labels"
            )
    for key, rank in (("image", 3), ("image_bytes", 0), ("boxes", 2)):
        found_rank = spec[key].shape.rank if key in spec else None
        if found_rank not in (None, rank) and not (key == "image" and found_rank == 2):
            raise ValueError(
                f"expected one image in an element of split '{split}', {key} of rank {rank}; got {spec[key].shape}: "
                "unbatch() the data set"
            )
    if data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"expected data that ends in split '{split}'; it repeats for ever: leave out repeat()")


def _arrays(data: tf.data.Dataset) -> Iterator[dict[str, Any]]:
    for element in data:
        yield {key: value.numpy() for key, value in element.items() if hasattr(value, "numpy")}


def _name(element: Mapping[str, Any], number: int) -> str:
    return _text(element.get("image_id", str(number)))


def _image(element: Mapping[str, Any]) -> bytes:
    if "image_bytes" in element:
        return bytes(element["image_bytes"])
    return tf.io.encode_png(as_pixels(element["image"]), compression=1).numpy()


def _text(value: Any) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
