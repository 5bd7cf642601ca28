"""Error against the number of scales (Fig. 9), and beside it the rows of a table that are not of scales."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from training.reports.exhibits import Exhibit, figure, save


def draw_scales(found: Sequence[dict[str, Any]], title: str, folder: Path) -> Iterator[Exhibit]:
    """Draw what `training.ladders.climb` gives: a panel an error, a point a row, crops as levels across."""
    names = [name for name in found[0] if name.endswith("_error")]
    counts = sorted({row["scales"] for row in found if row["scales"]})
    made = figure(5.4 * len(names), 5.0)
    for axes, name in zip(made.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        number = 0
        for row in found:
            if not row["scales"]:
                # The first widest, so that levels that coincide are both seen.
                look = {"linestyle": ("-", "--", ":")[number % 3], "linewidth": (3.2, 1.8, 1.2)[number % 3]}
                axes.axhline(100 * row[name], color=f"C{7 - number}", label=row["row"], **look)
                number += 1
        kinds: dict[str, list[dict[str, Any]]] = {}
        for row in found:
            if row["scales"]:
                kinds.setdefault(_kind(row["row"]), []).append(row)
        for number, (kind, rows) in enumerate(kinds.items()):
            places, errors = [row["scales"] for row in rows], [100 * row[name] for row in rows]
            axes.plot(places, errors, marker="osD^v"[number % 5], label=kind, color=f"C{number}")
        if counts:
            axes.set_xticks(counts)
            axes.set_xlim(counts[0] - 0.5, counts[-1] + 0.5)
        axes.set_ylim(0, max(1.0, 1.08 * max(100 * row[name] for row in found)))
        axes.set(xlabel="scales", ylabel="error, %", title=name)
        axes.grid(color="0.9")
    handles, labels = axes.get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    file = f"{title}.png"
    save(made, folder / file)
    yield Exhibit("Error against the number of scales", file)


def _kind(row: str) -> str:
    """Take the number of scales off a row's name: "4 scales, fine stride" is of the kind "fine stride"."""
    return row.partition(", ")[2] or "dense"
