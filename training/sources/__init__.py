"""Where images and boxes come from: one file a source, one record schema (`record.py`)."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import tensorflow as tf

from overfeat_tf.suggestion import suggest
from training.sources.advice import describe
from training.sources.checks import Log, ReportFinding
from training.sources.coco import FORM, open_coco
from training.sources.csv_table import CsvTable
from training.sources.dataset import DatasetSource
from training.sources.digits import DigitScenes
from training.sources.folder import ImageFolder
from training.sources.ilsvrc import IlsvrcFolder
from training.sources.record import SCHEMA, Record, Source, as_dataset
from training.sources.splits import divide
from training.sources.text import ContentError
from training.sources.tfds import TfdsSet
from training.sources.tfrecord import TfRecords
from training.sources.voc import VocFolder
from training.sources.yolo import YoloFiles

# What the command line calls each: the part before the colon, the form, and what to do with the rest.
OPENERS: dict[str, tuple[str, Callable[[str, ReportFinding], Source]]] = {
    "digits": ("digits", lambda rest, report: DigitScenes()),
    "voc": ("voc:DIR", lambda rest, report: VocFolder(Path(rest), report)),
    "coco": (FORM, open_coco),
    "yolo": ("yolo:data.yaml", lambda rest, report: YoloFiles(Path(rest), report)),
    "csv": ("csv:FILE", CsvTable),
    "tfrecord": ("tfrecord:GLOB", TfRecords),
    "ilsvrc": ("ilsvrc:DIR", lambda rest, report: IlsvrcFolder(Path(rest), report)),
    "folder": ("folder:DIR", lambda rest, report: ImageFolder(Path(rest), report)),
    "tfds": ("tfds:NAME[/CONFIG][:VERSION][+boxes=DIR]", TfdsSet),
}

Data: TypeAlias = str | Source | tf.data.Dataset | Mapping[str, tf.data.Dataset]  # what `open_data` opens

__all__ = ["SCHEMA", "Data", "Record", "Source", "as_dataset", "open_data", "open_source"]


def open_data(data: Data, class_names: Sequence[str] | None = None, report: ReportFinding | None = None) -> Source:
    """Open data of any kind: a SOURCE, a source (or what has one as `source`), or tf.data (`DatasetSource`).

    Args:
        data: The data.
        class_names: Of tf.data; other data names its own.
        report: As for `open_source`; a source that is open already has its own.

    Raises:
        ValueError: see `open_source` and `DatasetSource`; or data of another kind.
    """
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


def open_source(spec: str, report: ReportFinding | None = None) -> Source:
    """Open a SOURCE of the command line: `digits`, `voc:DIR` and the others of `OPENERS`.

    Of a source of one list a part is held out for validation (`splits.Divided`).

    Args:
        spec: The SOURCE.
        report: Is told of all that is wrong with its records; by default the log, of what is not used.

    Raises:
        ValueError: no such source, or nothing there; one line.
    """
    kind, _, rest = spec.partition(":")
    if kind in OPENERS and bool(rest) == (kind != "digits"):
        try:
            return divide(OPENERS[kind][1](rest, report or Log()))
        except ValueError as error:
            settled = kind == "tfds" or isinstance(error, ContentError)
            settled |= any(word in str(error) for word in ("write ", "say '"))
            advice = "" if settled else describe(Path(rest))
            if not advice or advice.endswith(f" {spec}"):  # then the SOURCE is right, and its content is not
                raise
            raise ValueError(f"{error}; {advice}") from error
    hint = ""
    if kind not in OPENERS:
        nowhere = "there is no such file or folder" if "/" in spec else ""
        hint = describe(Path(spec)) if os.path.exists(spec) else suggest(kind, OPENERS) or nowhere
    hint = f"; {hint}" if hint and not hint.startswith(";") else hint
    forms = ", ".join(form for form, _ in OPENERS.values())
    raise ValueError(f"expected a data source, one of {forms}; got '{spec}'{hint}")
