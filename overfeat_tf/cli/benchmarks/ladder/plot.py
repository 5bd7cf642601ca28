"""The ladder as a picture: how far each way is from the first of its question, seed by seed."""

from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from overfeat_tf.cli.benchmarks.ladder.measure import differences

ROW, HEAD, LABELS, PANEL = 0.25, 0.9, 3.2, 3.4  # inches
FIRST, BETTER, WORSE, OPEN = "0.45", "tab:green", "tab:red", "tab:blue"
LINEAR = 0.02  # differences up to here are drawn to scale, larger ones by their logarithm
TICKS = (-0.5, -0.1, -0.02, 0, 0.02, 0.1, 0.5)

Ways = dict[str, dict[str, list[float]]]


def draw(results: dict, path: Path) -> None:
    """Draw what `ladder.measure` gives into a PNG file.

    A row a way, a panel for each of the two figures of its question: the mean difference from the question's first way,
    and a line from the least to the greatest over seeds, or over a committee's members. Green and red where all of them
    agree on which is better, blue where they do not.
    """
    rows = [row for question, ways in results["found"].items() for row in ((question, ways, None), *_rows(ways))]
    size = (LABELS + 2 * PANEL, HEAD + ROW * len(rows))
    picture = Figure(figsize=size, layout="constrained")
    panels = picture.subplots(1, 2, sharey=True)
    for number, axes in enumerate(panels):
        for place, (_, ways, way) in enumerate(rows):
            _row(axes, place, ways, way, number)
        _dress(axes, len(rows))
    panels[0].set_yticks(range(len(rows)), [name for name, *_ in rows])
    for label, (*_, way) in zip(panels[0].get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if way is None else "normal")
    picture.suptitle(f"{results['ladder']}, {len(results['seeds'])} seeds: difference from each question's first way")
    picture.savefig(path, dpi=110)


def _rows(ways: Ways) -> list[tuple[str, Ways, str]]:
    return [(name, ways, name) for name in ways]


def _row(axes: Axes, place: int, ways: Ways, way: str | None, number: int) -> None:
    """Draw a way's difference in its question's figure of that number, or, for none, what the figure is."""
    first = next(iter(ways.values()))
    figure = [*first][number]
    if way is None:
        axes.text(0.01, place, figure, transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=FIRST)
        return
    values, base = ways[way][figure], first[figure]
    found = differences(values, base)
    colour = _colour([-value if figure.endswith("_error") else value for value in found])
    axes.plot([min(found), max(found)], [place, place], color=colour, linewidth=2)
    axes.plot([mean(found)], [place], "o", color=colour, markersize=5)
    axes.text(1.01, place, f"{mean(values):.3f}", transform=axes.get_yaxis_transform(), va="center", fontsize=8)


def _colour(gains: list[float]) -> str:
    return BETTER if min(gains) > 0 else WORSE if max(gains) < 0 else OPEN if any(gains) else FIRST


def _dress(axes: Axes, rows: int) -> None:
    axes.axvline(0, color=FIRST, linewidth=0.8)
    axes.set_xscale("symlog", linthresh=LINEAR, linscale=1.0)
    axes.set_xlim(-0.6, 0.6)
    axes.set_xticks(TICKS, [f"{tick:+g}" if tick else "0" for tick in TICKS], fontsize=8)
    axes.minorticks_off()
    axes.set_ylim(rows - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
