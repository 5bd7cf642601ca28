"""Draw the results of a ladder: the difference of each variant from the first one of its choice."""

from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from overfeat_tf.cli.benchmarks.ladder.measure import differences

ROW, HEAD, LABELS, PANEL = 0.25, 0.9, 3.2, 3.4  # inches
FIRST, BETTER, WORSE, UNDECIDED = "0.45", "tab:green", "tab:red", "tab:blue"
LINEAR = 0.02  # differences up to this are drawn to scale, larger ones by their logarithm
TICKS = (-0.5, -0.1, -0.02, 0, 0.02, 0.1, 0.5)

Variants = dict[str, dict[str, list[float]]]


def draw(results: dict, path: Path) -> None:
    """Draw the results of `ladder.measure` into a PNG file.

    Each variant has a row, each of the two figures of its choice a panel. A dot shows the mean difference from the
    first variant, a line the range over seeds or over a committee's members. They are green or red where all agree on
    which variant is better, and blue where they do not.
    """
    rows: list[tuple[str, Variants, str | None]] = []
    for choice, variants in results["found"].items():
        rows += [(choice, variants, None), *((name, variants, name) for name in variants)]
    size = (LABELS + 2 * PANEL, HEAD + ROW * len(rows))
    picture = Figure(figsize=size, layout="constrained")
    panels = picture.subplots(1, 2, sharey=True)
    for number, axes in enumerate(panels):
        for place, (_, variants, variant) in enumerate(rows):
            _row(axes, place, variants, variant, number)
        _style(axes, len(rows))
    panels[0].set_yticks(range(len(rows)), [name for name, *_ in rows])
    for label, (*_, variant) in zip(panels[0].get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if variant is None else "normal")
    picture.suptitle(f"{results['ladder']}, {len(results['seeds'])} seeds: difference from each choice's first variant")
    picture.savefig(path, dpi=110)


def _row(axes: Axes, place: int, variants: Variants, variant: str | None, number: int) -> None:
    """Draw a variant's difference in its choice's figure of that number; without a variant, the figure's name."""
    first = next(iter(variants.values()))
    figure = [*first][number]
    if variant is None:
        axes.text(0.01, place, figure, transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=FIRST)
        return
    values, base = variants[variant][figure], first[figure]
    found = differences(values, base)
    colour = _colour([-value if figure.endswith("_error") else value for value in found])
    axes.plot([min(found), max(found)], [place, place], color=colour, linewidth=2)
    axes.plot([mean(found)], [place], "o", color=colour, markersize=5)
    axes.text(1.01, place, f"{mean(values):.3f}", transform=axes.get_yaxis_transform(), va="center", fontsize=8)


def _colour(gains: list[float]) -> str:
    return BETTER if min(gains) > 0 else WORSE if max(gains) < 0 else UNDECIDED if any(gains) else FIRST


def _style(axes: Axes, rows: int) -> None:
    axes.axvline(0, color=FIRST, linewidth=0.8)
    axes.set_xscale("symlog", linthresh=LINEAR, linscale=1.0)
    axes.set_xlim(-0.6, 0.6)
    axes.set_xticks(TICKS, [f"{tick:+g}" if tick else "0" for tick in TICKS], fontsize=7)
    axes.minorticks_off()
    axes.set_ylim(rows - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
