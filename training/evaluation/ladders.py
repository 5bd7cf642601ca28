"""The rows of the paper's Table 2 and Fig. 9 as inference options, to score one run by each in turn."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from overfeat_tf.models.model import Model
from training.evaluation.evaluate import Callback, evaluate
from training.evaluation.metrics import Answer, IlsvrcErrors
from training.evaluation.reports.report import markdown_table
from training.progress import progress
from training.sources.record import Record, Source

log = logging.getLogger(__name__)


ENOUGH = 10_000  # boxes: their median moves no more; of ImageNet all would be hours
IMAGES = 50_000  # that are looked at for them


def median_box(source: Source, quiet: bool = False) -> np.ndarray | None:
    """Return the median of each edge over the training boxes, normalised yxyx [4], from the first some ten thousand.

    None, with a warning, where the source has no split "train" or the images that were looked at have no box.
    """
    boxes: list[np.ndarray] = []
    if "train" in source.splits:
        for record in progress(source.records("train", IMAGES), "boxes of train", quiet=quiet):
            boxes.extend(record.boxes[record.boxed])
            if len(boxes) >= ENOUGH:
                break
    if not boxes:
        log.warning("no row of a fixed box: %s has no boxes in a split 'train' to take it from", source.name)
        return None
    return np.median(boxes, axis=0)


class FixedBox:
    """Scores one box for every image: localization errors, had each guess of a model's this box."""

    def __init__(self, box: np.ndarray):
        """Take the box, normalised yxyx [4]."""
        self._box, self._metric = box, IlsvrcErrors("localization")

    def process(self, record: Record, answer: Answer) -> None:
        """Add an image, with the classes of an answer of `localize`."""
        boxes = np.tile(self._box, (len(answer["detection_classes"]), 1))
        self._metric.process(record, {**answer, "detection_boxes": boxes})

    def process_right(self, record: Record) -> None:
        """Add an image, with the classes that are in it: what only a perfect classifier gets."""
        labels = np.unique(record.labels)
        self.process(record, {"num_detections": np.array(len(labels)), "detection_classes": labels + 1.0})

    def errors(self) -> dict[str, float]:
        """Return localization1_error and localization5_error, in 0..1.

        Raises:
            ValueError: no image with a box was added.
        """
        return dict(self._metric.evaluate())


FEW = (1, 2, 4, 6)  # the "4 scales" of Table 2
DENSE: dict[str, Any] = {"views": "dense", "flips": True, "fine": True, "scale_fit": "exact"}  # Table 5's own sizes
MERGING: dict[str, Any] = {"localize_by": "accumulated", "merge_average": "plain"}  # as 4.3 has it


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        name: What it is.
        changes: The inference options that make it.
        paper: The paper's figures of it, in per cent.
    """

    name: str
    changes: dict[str, Any]
    paper: str = ""

    @property
    def key(self) -> str:
        """Name the row as a protocol does: in small letters, with hyphens."""
        return re.sub("[^a-z0-9]+", "-", self.name.lower())


TABLES = {"table2": "classification", "fig9": "localization"}  # and the protocol that each is scored by
PAPER = {"table2": "the paper, top-1 / top-5", "fig9": "the paper, `accurate`"}  # what stands above its figures
SCR, PCR = ", SCR", ", PCR"  # one regressor for all classes, or one for each (4.3)
PER_CLASS = "In the paper PCR has 44.1, against 31.3 for SCR; of how many scales it does not say."


def rows(table: str, scales: int, members: int = 1) -> tuple[Row, ...]:
    """List a table's rows for a network with so many scales; those of scales that it does not have are left out.

    Table 2's are top-1 / top-5 errors, of `fast` and of `accurate`; a committee of several members has other figures
    in the paper than one network. Fig. 9's are the localization errors of `accurate`.
    """
    if table == "table2":
        few = "fast 38.57 / 16.39; accurate 35.74 / 14.18"
        listed = [
            Row("centre crop", {"views": "centre", "flips": False}),
            Row("ten views", {"views": "ten"}, "accurate 35.60 / 14.71"),
            Row("1 scale, coarse stride", DENSE | {"scales": (1,), "fine": False}, "fast 39.28 / 17.12"),
            Row("1 scale, fine stride", DENSE | {"scales": (1,)}, "fast 39.01 / 16.97"),
            Row("4 scales, fine stride", DENSE | {"scales": FEW}, few),
            Row("all scales, fine stride", DENSE | {"scales": None}, "fast 38.12 / 16.27"),
            Row("all scales, no flips", DENSE | {"scales": None, "flips": False}),
        ]
        if members > 1:
            sevens = {"4 scales, fine stride": "7 fast 35.10 / 13.86; 7 accurate 33.96 / 13.24"}
            listed = [replace(row, paper=sevens.get(row.name, "")) for row in listed]
    else:
        published = {2: "31.5", 4: "30.0"}  # three scales have no figure in the text
        listed = [Row("centre crop", {"views": "centre", "flips": False} | MERGING, "about 40")]
        for count in range(1, scales + 1):
            changes = DENSE | MERGING | {"scales": tuple(range(1, count + 1))}
            listed.append(Row(f"{count} scale{'s' * (count > 1)}", changes, published.get(count, "")))
    return tuple(row for row in listed if max(row.changes.get("scales") or (1,)) <= scales)


def row_options(table: str) -> set[str]:
    """Return the inference options that a table's rows set, by the names of their fields."""
    return {"scales", *(name for row in rows(table, 1) for name in row.changes)}


def table_of(protocol: str | None) -> str | None:
    """Return the table that a protocol such as "table2" or "table2:ten-views" is of; None if it is of none."""
    table = (protocol or "").partition(":")[0]
    return table if table in TABLES else None


def row_of(model: Model, protocol: str) -> Row | None:
    """Return the one row that a protocol such as "table2:ten-views" names; None where it asks for a whole table.

    Raises:
        ValueError: no such row of this model.
    """
    name, _, key = protocol.partition(":")
    if not key:
        return None
    listed = {row.key: row for row in rows(name, _scales(model), len(model.networks))}
    if key not in listed:
        keys = ", ".join(listed)
        raise ValueError(
            f"expected a row of {name} for a network of {_scales(model)} scales, one of {keys}; got '{key}'"
        )
    return listed[key]


def score_rows(
    model: Model,
    source: Source,
    split: str,
    table: str,
    limit: int | None = None,
    callbacks: Mapping[str, Sequence[Callback]] | None = None,
) -> Iterator[dict[str, Any]]:
    """Score a run, or a committee of runs, by each row of a table, or by one.

    Args:
        model: The run.
        source, split, limit: What to score on.
        table: Of `TABLES`, or with one row's key, such as "table2:ten-views".
        callbacks: As for `evaluate`; they get the answers of every row that is scored.

    Yields:
        "row", what the row is of this model, "paper", the row's errors, in 0..1, and "scales", the number of those
            that were scanned densely, 0 for crops. Among all of localization's rows are those of a fixed box, where
            the source has boxes in a split "train" to take it from: first with the right classes, then, after each row,
            with the model's own guesses of it.

    Raises:
        ValueError: no such row.
    """
    name = table.partition(":")[0]
    protocol, one = TABLES[name], row_of(model, table)
    box = median_box(source) if protocol == "localization" and one is None else None
    if box is not None:
        right = FixedBox(box)
        for record in source.records(split, limit):
            if record.boxed.all():
                right.process_right(record)
        yield {"row": "a fixed box, right class", "paper": "", "scales": 0, **right.errors()}
    for row in [one] if one else rows(name, _scales(model), len(model.networks)):
        fixed = FixedBox(box) if box is not None else None
        called = {protocol: [*(callbacks or {}).get(protocol, ()), *([fixed.process] if fixed else [])]}
        changed, title = model.with_options(**row.changes), f"{name}:{row.key}"
        figures = evaluate(changed, source, split, (protocol,), limit, callbacks=called, title=title)
        errors = {name: value for name, value in figures.items() if name.endswith("_error")}
        dense = row.changes["views"] == "dense"
        count = len(row.changes["scales"] or range(_scales(model))) if dense else 0
        of = _of(model, protocol)
        paper = "" if of == PCR else row.paper  # Fig. 9's are SCR's
        scored = {"scales": count, "images": figures["images"]}
        yield {"row": row.name + of, "paper": paper, **scored, **errors}
        if fixed:
            yield {"row": f"{row.name}, a fixed box", "paper": "", **scored, **fixed.errors()}


def _scales(model: Model) -> int:
    return min(len(network.preset.scales) for network in model.networks)


def _of(model: Model, protocol: str) -> str:
    """Return what a row is of: how a run's boxes were learnt (Fig. 9), or how many networks voted (Table 2)."""
    if protocol == "localization":
        return PCR if model.network.per_class else SCR
    return f", {len(model.networks)} models" if model.others else ""


def as_markdown(table: str, found: list[dict[str, Any]]) -> str:
    """Render what `score_rows` gives, errors in per cent, as the paper has them."""
    names = [name for name in found[0] if name.endswith("_error")]
    cells = [[row["row"], *(f"{100 * row[name]:.2f}" for name in names), row["paper"]] for row in found]
    rendered = markdown_table([f"{table}, %", *names, PAPER[table]], cells)
    return f"{rendered}\n\n{PER_CLASS}" if any(row["row"].endswith(PCR) for row in found) else rendered
