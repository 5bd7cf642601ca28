"""The rows of the paper's Table 2 and Fig. 9 as inference options, to score one run by each in turn."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from overfeat_tf.model import Model
from training.evaluate import evaluate
from training.metrics import Guesses
from training.reports.tables import markdown_table
from training.sources.record import Source

FEW = (1, 2, 4, 6)  # the "4 scales" of Table 2


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
        dense: dict[str, Any] = {"views": "dense", "flips": True, "fine": True}
        few = "fast 38.57 / 16.39; accurate 35.74 / 14.18"
        listed = [
            Row("centre crop", {"views": "centre", "flips": False}),
            Row("ten views", {"views": "ten"}, "accurate 35.60 / 14.71"),
            Row("1 scale, coarse stride", dense | {"scales": (1,), "fine": False}, "fast 39.28 / 17.12"),
            Row("1 scale, fine stride", dense | {"scales": (1,)}, "fast 39.01 / 16.97"),
            Row("4 scales, fine stride", dense | {"scales": FEW}, few),
            Row("all scales, fine stride", dense | {"scales": None}, "fast 38.12 / 16.27"),
            Row("all scales, no flips", dense | {"scales": None, "flips": False}),
        ]
        if members > 1:
            sevens = {"4 scales, fine stride": "7 fast 35.10 / 13.86; 7 accurate 33.96 / 13.24"}
            listed = [replace(row, paper=sevens.get(row.name, "")) for row in listed]
    else:
        published = {2: "31.5", 3: "30.0", 4: "30.0"}
        listed = [Row("centre crop", {"views": "centre", "flips": False}, "about 40")]
        for count in range(1, scales + 1):
            changes = {"views": "dense", "flips": True, "fine": True, "scales": tuple(range(1, count + 1))}
            listed.append(Row(f"{count} scale{'s' * (count > 1)}", changes, published.get(count, "")))
    return tuple(row for row in listed if max(row.changes.get("scales") or (1,)) <= scales)


def table_of(protocol: str | None) -> str | None:
    """Give the table that a protocol such as "table2" or "table2:ten-views" is of; None if it is of none."""
    table = (protocol or "").partition(":")[0]
    return table if table in TABLES else None


def climb(model: Model, source: Source, split: str, table: str, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """Score a run, or a committee of runs, by each row of a table, or by one.

    Args:
        model: The run.
        source, split, limit: What to score on.
        table: Of `TABLES`, or with one row's key, such as "table2:ten-views".

    Yields:
        "row", what the row is of this model, "paper", the row's errors, in 0..1, and "scales", the number of those
            that were scanned densely, 0 for crops. Before all of localization's rows that of a fixed box, where the
            source has a split "train" to take it from.

    Raises:
        ValueError: no such row.
    """
    name, _, key = table.partition(":")
    protocol, scales = TABLES[name], min(len(network.preset.scales) for network in model.networks)
    listed = rows(name, scales, len(model.networks))
    if key and key not in {row.key for row in listed}:
        keys = ", ".join(row.key for row in listed)
        raise ValueError(f"expected a row of {name} for a network of {scales} scales, one of {keys}; got '{key}'")
    if protocol == "localization" and "train" in source.splits and not key:
        errors = fixed_box_errors(source, "train", split, limit)
        yield {"row": "a fixed box, right class", "paper": "", "scales": 0, **errors}
    for row in listed:
        if key in ("", row.key):
            changed, title = model.with_options(**row.changes), f"{name}:{row.key}"
            figures = evaluate(changed, source, split, (protocol,), limit, title=title)
            errors = {name: value for name, value in figures.items() if name.endswith("_error")}
            dense = row.changes["views"] == "dense"
            count = len(row.changes["scales"] or range(scales)) if dense else 0
            of = _of(model, protocol)
            yield {"row": row.name + of, "paper": row.paper, "scales": count, "images": figures["images"], **errors}


def _of(model: Model, protocol: str) -> str:
    """Tell what a row is of: how a run's boxes were learnt (Fig. 9), or how many networks voted (Table 2)."""
    if protocol == "localization":
        return PCR if model.network.per_class else SCR
    return f", {len(model.networks)} models" if model.others else ""


def fixed_box_errors(source: Source, train_split: str, split: str, limit: int | None = None) -> dict[str, float]:
    """Give the localization errors of a box that never moves, of classes that are always right.

    The box is the median of the training split's; what a regressor has to beat before its figure means anything.
    """
    boxes = np.concatenate([np.zeros((0, 4)), *(record.boxes[record.boxed] for record in source.records(train_split))])
    if not len(boxes):
        raise ValueError(f"expected boxes in split '{train_split}' of {source.name}; there are none")
    box, metric = np.median(boxes, axis=0), Guesses()
    for record in source.records(split, limit):
        labels = np.unique(record.labels)
        metric.process(
            record,
            {
                "num_detections": np.array(len(labels)),
                "detection_classes": labels + 1.0,
                "detection_boxes": np.tile(box, (len(labels), 1)),
            },
        )
    return {name: value for name, value in metric.evaluate() if name.startswith("localization")}


def as_markdown(table: str, found: list[dict[str, Any]]) -> str:
    """Render what `climb` gives, errors in per cent, as the paper has them."""
    names = [name for name in found[0] if name.endswith("_error")]
    cells = [[row["row"], *(f"{100 * row[name]:.2f}" for name in names), row["paper"]] for row in found]
    rendered = markdown_table([f"{table}, %", *names, PAPER[table]], cells)
    return f"{rendered}\n\n{PER_CLASS}" if any(row["row"].endswith(PCR) for row in found) else rendered
