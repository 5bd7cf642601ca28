"""The rows of the paper's Table 2 and Fig. 9 as inference options, to score one run by each in turn."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from overfeat_tf.model import Model
from training.evaluate import evaluate
from training.metrics import Guesses
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


TABLES = {"table2": "classification", "fig9": "localization"}  # and the protocol that each is scored by


def rows(table: str, scales: int) -> tuple[Row, ...]:
    """List a table's rows for a network with so many scales; those of scales that it does not have are left out.

    Table 2's are top-1 / top-5 errors, of `fast` and of `accurate`; Fig. 9's the localization errors of `accurate`.
    """
    if table == "table2":
        dense: dict[str, Any] = {"views": "dense", "flips": True, "fine": True}
        listed = [
            Row("centre crop", {"views": "centre", "flips": False}),
            Row("ten views", {"views": "ten"}, "accurate 35.60 / 14.71"),
            Row("1 scale, coarse stride", dense | {"scales": (1,), "fine": False}, "fast 39.28 / 17.12"),
            Row("1 scale, fine stride", dense | {"scales": (1,)}, "fast 39.01 / 16.97"),
            Row("4 scales, fine stride", dense | {"scales": FEW}, "fast 38.57 / 16.39; accurate 35.74 / 14.18"),
            Row("all scales, fine stride", dense | {"scales": None}, "fast 38.12 / 16.27"),
            Row("all scales, no flips", dense | {"scales": None, "flips": False}),
        ]
    else:
        published = {2: "31.5", 3: "30.0", 4: "30.0"}
        listed = [Row("centre crop", {"views": "centre", "flips": False}, "about 40")]
        for count in range(1, scales + 1):
            changes = {"views": "dense", "flips": True, "fine": True, "scales": tuple(range(1, count + 1))}
            listed.append(Row(f"{count} scale{'s' * (count > 1)}", changes, published.get(count, "")))
    return tuple(row for row in listed if max(row.changes.get("scales") or (1,)) <= scales)


def climb(model: Model, source: Source, split: str, table: str, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """Score a run by each row of a table.

    Args:
        model: The run.
        source, split, limit: What to score on.
        table: Of `TABLES`.

    Yields:
        "row", "paper", and the row's errors, in 0..1; before localization's rows that of a fixed box, where the
            source has a split "train" to take it from.
    """
    protocol = TABLES[table]
    if protocol == "localization" and "train" in source.splits:
        yield {"row": "a fixed box, right class", "paper": "", **fixed_box_errors(source, "train", split, limit)}
    for row in rows(table, len(model.network.preset.scales)):
        figures = evaluate(model.with_options(**row.changes), source, split, (protocol,), limit)
        errors = {name: value for name, value in figures.items() if name.endswith("_error")}
        yield {"row": row.name, "paper": row.paper, **errors}


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
    lines = [f"| {table} | {' | '.join(names)} | the paper |", f"|{' --- |' * (len(names) + 2)}"]
    for row in found:
        values = " | ".join(f"{100 * row[name]:.2f}" for name in names)
        lines.append(f"| {row['row']} | {values} | {row['paper']} |")
    return "\n".join(lines)
