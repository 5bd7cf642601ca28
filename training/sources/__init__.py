"""Where images and boxes come from: a file for each format in `formats`, one record schema (`record.py`).

`SOURCES` has a row for each kind. A kind's file is imported when one is opened: the command line lists the kinds
without waiting for TensorFlow.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from overfeat_tf.arguments import suggest

if TYPE_CHECKING:
    from training.sources.checks import ReportFinding
    from training.sources.dataset import Data
    from training.sources.record import Source


class SourceKind(NamedTuple):
    """A kind of source.

    Attributes:
        forms: What the command line calls it, each form with what it is.
        opener: What opens one from what follows the colon and a report, by its file in `formats` and its name.
        rest: What it takes of what follows the colon.
    """

    forms: dict[str, str]
    opener: str
    rest: Callable[[str], Any] = str

    def open(self, rest: str, report: "ReportFinding") -> "Source":
        """Open a source of this kind."""
        module, _, name = self.opener.partition(".")
        return getattr(import_module(f"{__name__}.formats.{module}"), name)(self.rest(rest), report)


SOURCES = {
    "digits": SourceKind({"digits": "the embedded scenes"}, "digits.open_digits"),
    "voc": SourceKind(
        {"voc:DIR": "Pascal VOC's layout, or XML files beside images or in a folder of their own"},
        "voc.VocFolder",
        Path,
    ),
    "coco": SourceKind(
        {
            "coco:DIR": "COCO's and Roboflow's trees; all splits are found",
            "coco:IMAGES_DIR:ANNOTATIONS.json": "{split} in both parts stands for every split",
        },
        "coco.open_coco",
    ),
    "yolo": SourceKind({"yolo:data.yaml": "Ultralytics' layout"}, "yolo.YoloFiles", Path),
    "csv": SourceKind(
        {"csv:FILE": "a row per object: filename,width,height,class,xmin,ymin,xmax,ymax"}, "csv_table.CsvTable"
    ),
    "tfrecord": SourceKind(
        {"tfrecord:GLOB": "tf.Examples with the keys of the Object Detection API"}, "tfrecord.TfRecords"
    ),
    "ilsvrc": SourceKind({"ilsvrc:DIR": "ImageNet's CLS-LOC or DET layout"}, "ilsvrc.IlsvrcFolder", Path),
    "folder": SourceKind(
        {"folder:DIR": "a folder per class, inside train, val and test folders or without them"},
        "folder.ImageFolder",
        Path,
    ),
    "tfds": SourceKind(
        {"tfds:NAME[/CONFIG][:VERSION]": "TensorFlow Datasets; add +boxes=DIR for ImageNet's boxes"}, "tfds.TfdsSet"
    ),
}


def open_data(
    data: "Data", class_names: Sequence[str] | None = None, report: "ReportFinding | None" = None
) -> "Source":
    """Open data of any kind: a SOURCE, a source (or what has one as `source`), or tf.data (`DatasetSource`).

    Args:
        data: The data.
        class_names: Of tf.data; other data names its own.
        report: As for `open_source`; a source that is open already has its own.

    Raises:
        ValueError: see `open_source` and `DatasetSource`; or data of another kind.
    """
    import tensorflow as tf

    from training.sources.checks import Log
    from training.sources.dataset import DatasetSource

    if isinstance(data, tf.data.Dataset | Mapping):
        return DatasetSource(data, class_names, report or Log())
    if class_names is not None:
        raise ValueError("expected class_names with a tf.data.Dataset alone; other data names its own classes")
    if isinstance(data, str):
        return open_source(data, report)
    source = getattr(data, "source", data)
    if not all(hasattr(source, name) for name in ("name", "class_names", "splits", "boxed", "records")):
        raise ValueError(
            f"expected a SOURCE such as 'voc:DIR', a source, or a tf.data.Dataset; got '{type(data).__name__}'"
        )
    return source


def open_source(spec: str, report: "ReportFinding | None" = None) -> "Source":
    """Open a SOURCE of the command line: `digits`, `voc:DIR` and the others of `SOURCES`.

    Of a source of one list a part is held out for validation (`splits.Divided`).

    Args:
        spec: The SOURCE.
        report: Is told of all that is wrong with its records; by default the log, of what is not used.

    Raises:
        ValueError: no such source, or nothing there; one line.
    """
    from training.sources.advice import describe
    from training.sources.checks import Log
    from training.sources.splits import divide
    from training.sources.text import ContentError

    kind, _, rest = spec.partition(":")
    if kind in SOURCES and bool(rest) == (kind != "digits"):
        try:
            return divide(SOURCES[kind].open(rest, report or Log()))
        except ValueError as error:
            settled = kind == "tfds" or isinstance(error, ContentError)
            settled |= any(word in str(error) for word in ("write ", "say '"))
            advice = "" if settled else describe(Path(rest))
            if not advice or advice.endswith(f" {spec}"):  # then the SOURCE is right, and its content is not
                raise
            raise ValueError(f"{error}; {advice}") from error
    hint = ""
    if kind not in SOURCES:
        nowhere = "there is no such file or folder" if "/" in spec else ""
        hint = describe(Path(spec)) if os.path.exists(spec) else suggest(kind, SOURCES) or nowhere
    hint = f"; {hint}" if hint and not hint.startswith(";") else hint
    forms = ", ".join(", or ".join(each.forms) for each in SOURCES.values())
    raise ValueError(f"expected a data source, one of {forms}; got '{spec}'{hint}")
