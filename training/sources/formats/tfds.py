"""TensorFlow Datasets: any set whose features have an image and a label, or objects with boxes and labels."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from overfeat_tf.images.decode import read_size
from training.sources.checks import AnnotatedObject, Finding, Kind, ReportFinding, make_record
from training.sources.file_source import ExampleSource
from training.sources.formats.annotation_xml import read_annotation
from training.sources.record import Record

OPTION = "+boxes="
SPLITS = {"validation": "val"}  # as everywhere else
FILE_NAMES = ("file_name", "image/filename")  # features that make an id; else the place in tfds's own files
# Flags of objects, under the names that data sets have for them.
FLAGS = {
    "difficult": ("is_difficult",),
    "crowd": ("is_crowd", "is_group_of"),
    "truncated": ("is_truncated",),
    "occluded": ("is_occluded",),
}


class TfdsSet(ExampleSource):
    """A set of TensorFlow Datasets, downloaded and prepared at first.

    Its splits keep their names, but for `validation`, which is `val`. The order is that of tfds's files, mixed when
    they were written. Crowds are `difficult`: not counted when missed, nor when found.

    Args:
        spec: NAME[/CONFIG][:VERSION], with `+boxes=DIR` after it for a set of ImageNet's images: DIR is the unpacked
            archive of bounding boxes, WNID/WNID_N.xml, the ones of train and val in folders so named or together.
        report: Is told of what is wrong.

    Raises:
        ValueError: no such set, features of other kinds, no folder of boxes, or archives to be downloaded by hand.
        RuntimeError: a download fails.
    """

    def __init__(self, spec: str, report: ReportFinding):
        set_name, _, boxes = spec.partition(OPTION)
        super().__init__(f"tfds:{spec}", report)
        self._boxes = Path(boxes) if boxes else None
        if OPTION in spec and (self._boxes is None or not self._boxes.is_dir()):
            raise ValueError(f"expected a folder of bounding boxes in XML after {OPTION}; there is no '{boxes}'")
        self._builder = _prepare(set_name)
        features = self._builder.info.features
        self._image_key, self._objects, self._label = _find_features(set_name, features)
        label = features[self._objects[0]][self._objects[2]] if self._objects else features[self._label]
        self.class_names = tuple(label.names)
        self._ids = next((name for name in FILE_NAMES if name in features), "tfds_id")
        if self._boxes is not None and (self._objects or self._ids == "tfds_id"):
            raise ValueError(f"expected {OPTION}DIR for images with file names and without boxes; got 'tfds:{spec}'")
        self.boxed = bool(self._objects or self._boxes)
        self._splits = {SPLITS.get(split, split): split for split in self._builder.info.splits}
        self.splits = tuple(self._splits)

    def _examples(self, split: str, report: ReportFinding | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        import tensorflow_datasets as tfds

        data = self._builder.as_dataset(
            split=self._splits[split],
            decoders={self._image_key: tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(add_tfds_id=True, try_autocache=False),
            shuffle_files=False,
        )
        for example in tfds.as_numpy(data):
            yield example[self._ids].decode(), example

    def _image(self, example: dict[str, Any]) -> bytes:
        return bytes(example[self._image_key])

    def _record(self, name: str, example: dict[str, Any]) -> Record | None:
        data, classes = self._image(example), self._classes
        if self._objects:
            try:
                stored = read_size(data)[0][::-1]  # boxes are normalised
            except ValueError as error:
                self._report(Finding(Kind.UNREADABLE, name, str(error)))
                return None
            # Of an image that is shown turned, nobody says which way its boxes lie.
            return make_record(
                data, name, self._read_objects(example, self._objects, *stored), classes, self._report, stated=stored
            )
        if (label := int(example[self._label])) < 0:  # a test set: no labels
            return Record.of_objects(data, name, [], [])
        class_name = self.class_names[label]
        path = self._annotation(name, class_name)
        if path is None:
            return make_record(data, name, (), classes, self._report, image_class=class_name)
        annotation = read_annotation(path, name, self._report)
        if annotation is None:
            return None
        return make_record(
            data, name, annotation.objects, classes, self._report, stated=annotation.size, image_class=class_name
        )

    def _read_objects(
        self, example: dict[str, Any], keys: tuple[str, str, str], width: int, height: int
    ) -> Iterator[AnnotatedObject]:
        key, box, label = keys
        objects = example[key]
        flags = {flag: [name for name in names if name in objects] for flag, names in FLAGS.items()}
        for i in range(len(objects[label])):
            ymin, xmin, ymax, xmax = (float(edge) for edge in objects[box][i])
            corners = (ymin * height, xmin * width, ymax * height, xmax * width)
            marks: dict[str, Any] = {
                flag: any(objects[name][i] > 0 for name in names)  # Open Images has -1 for what is not known
                for flag, names in flags.items()
            }
            yield AnnotatedObject(self.class_names[int(objects[label][i])], corners, **marks)

    def _annotation(self, name: str, wnid: str) -> Path | None:
        """Find the file of the image's boxes; None where it has none, as most of ImageNet's training images."""
        if self._boxes is None:
            return None
        stem = Path(name).stem
        for place in (f"{wnid}/{stem}", f"train/{wnid}/{stem}", stem, f"val/{stem}"):
            path = self._boxes / f"{place}.xml"
            if path.is_file():
                return path
        return None


def _prepare(name: str) -> Any:
    """Open a set, downloading it at first."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name)
    except (ValueError, AssertionError) as error:  # no such set, configuration or version
        line = str(error).strip().splitlines()[0]
        raise ValueError(f"expected a set of TensorFlow Datasets; got 'tfds:{name}': {line}") from error
    try:
        builder.download_and_prepare()
    except AssertionError as error:
        wanted = " ".join((builder.MANUAL_DOWNLOAD_INSTRUCTIONS or str(error)).split())
        folder = Path(builder.data_dir_root).expanduser() / "downloads" / "manual"
        raise ValueError(f"expected archives of your own download in '{folder}' for 'tfds:{name}': {wanted}") from error
    except tfds.download.DownloadError as error:
        raise RuntimeError(f"tfds:{name} could not be downloaded: {error}") from error
    return builder


def _find_features(name: str, features: Any) -> tuple[str, tuple[str, str, str] | None, str]:
    """Return the names of the image, of the objects with their box and label, or of the image's label."""
    import tensorflow_datasets as tfds

    def of_kind(parts: Any, kind: type) -> list[str]:
        # `label` first, where there are several of a kind (VOC's objects have a pose too).
        return sorted((key for key, part in parts.items() if isinstance(part, kind)), key=lambda key: key != "label")

    images = of_kind(features, tfds.features.Image)
    for key, part in features.items():
        inner = getattr(part, "feature", None)
        if isinstance(part, tfds.features.Sequence) and isinstance(inner, tfds.features.FeaturesDict):
            boxes, labels = of_kind(inner, tfds.features.BBoxFeature), of_kind(inner, tfds.features.ClassLabel)
            if images and boxes and labels:
                return _first(images), (key, boxes[0], labels[0]), ""
    labels = of_kind(features, tfds.features.ClassLabel)
    if not images or not labels:
        raise ValueError(f"expected image and label or objects in 'tfds:{name}'; it has {', '.join(sorted(features))}")
    return _first(images), None, labels[0]


def _first(images: list[str]) -> str:
    return "image" if "image" in images else images[0]
