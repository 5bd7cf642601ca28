"""Curves and charts: precision and recall, figures by size and shape, reliability of scores, error against scales."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.evaluation.average_precision import VocDetection, area_under
from training.evaluation.calibration import BINS
from training.evaluation.recall import GROUPINGS, LEVELS, PrecisionRecall
from training.evaluation.reports.report import Exhibit, figure, format_value, literal, markdown_table, save, shortened

FILE, BY_SCORE_FILE = "detection_precision_recall.png", "detection_by_score.png"
RECALLS = np.linspace(0.0, 1.0, 101)
EACH = 12  # classes with a colour and a name of their own; of more the best and the worst
RELIABILITY = ("count", "score", "right")  # of each bin
GROUPS_FILE, RELIABILITY_FILE = "detection_by_size.png", "detection_reliability.png"
BARS = {"map50": "AP50 (mean over classes)", "recall": "recall", "recall_displayed": "recall at the display threshold"}
TITLES = {
    "area": ("area in pixels", ("below 32²", "32² to 96²", "above 96²")),
    "share": ("longer side over the image's longer side", ("below 1/8", "1/8 to 1/3", "1/3 to 2/3", "above 2/3")),
    "aspect": ("longer over shorter side", ("below 1.5", "1.5 to 3", "above 3")),
}


class PrecisionRecallCurves(VocDetection):
    """Draws each class's precision against recall by VOC's rules, and their mean."""

    def __init__(self, class_names: Sequence[str], display_threshold: float | None = None):
        super().__init__(class_names)

    def draw(self, folder: Path) -> Iterator[Exhibit]:
        """Draw the curves: at each recall the best precision there or beyond."""
        curves = {name: curve for name, curve in zip(self._names, self.curves(), strict=True) if curve}
        if not curves:
            return
        areas = {name: area_under(*curve) for name, curve in curves.items()}
        ranked = sorted(areas, key=lambda name: -areas[name])
        named = ranked if len(ranked) <= EACH else [*ranked[: EACH // 2], *ranked[-EACH // 2 :]]
        levels = {name: best_precision(*curve) for name, curve in curves.items()}
        made = figure(8.5, 5.2)
        axes = made.subplots()
        for name in ranked:
            if name not in named:
                axes.plot(RECALLS, levels[name], color="0.85", linewidth=0.6)
        for number, name in enumerate(named):
            colour, label = f"C{number % 10}", f"{areas[name]:.2f}  {literal(shortened(name))}"
            style = "-" if number < 10 else "--"
            axes.plot(RECALLS, levels[name], color=colour, linewidth=1.1, linestyle=style, label=label)
        if len(curves) > 1:
            mean = np.mean(list(areas.values()))
            middle = np.mean(list(levels.values()), axis=0)
            axes.plot(RECALLS, middle, color="black", linewidth=2.6, label=f"{mean:.2f}  mean of {len(curves)}")
        axes.set(xlim=(0, 1.005), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        axes.grid(color="0.9")
        few = f", the {EACH // 2} best and worst of {len(ranked)}" if len(named) < len(ranked) else ""
        axes.set_title("Precision and recall at IoU 0.5", fontsize=11)
        made.legend(loc="outside right upper", fontsize=8, title=f"average precision{few}".replace(", ", "\n"))
        save(made, folder / FILE)
        yield Exhibit("Precision and recall", FILE)


class ScoreCurves(PrecisionRecall):
    """Draws precision, recall and F1 of the detections that reach a score, of all classes together."""

    def __init__(self, class_names: Sequence[str], display_threshold: float | None = None):
        super().__init__(class_names)
        self._threshold = display_threshold

    def draw(self, folder: Path) -> Iterator[Exhibit]:
        """Draw the curves, with the display threshold if there is one."""
        _, (right, wrong, _, missed, precision, recall) = next(self.evaluate())
        if not (right[0] + wrong[0]) or not (right[0] + missed[0]):
            return
        some = right + wrong > 0  # beyond the highest score there is no precision
        f1 = 2 * right / np.maximum(2 * right + wrong + missed, 1)
        made = figure(7.5, 4.6)
        axes = made.subplots()
        axes.plot(LEVELS[some], precision[some], color="C0", label="precision")
        axes.plot(LEVELS, recall, color="C1", label="recall")
        axes.plot(LEVELS, f1, color="0.5", linewidth=1, linestyle="--", label=f"F1, best {f1.max():.2f}")
        if self._threshold is not None:
            axes.axvline(self._threshold, color="C2", linewidth=1.2, label=f"display threshold {self._threshold:.2f}")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="score, at least", ylabel="precision, recall")
        axes.grid(color="0.9")
        axes.set_title("Precision and recall by score, at IoU 0.5, of all classes together", fontsize=11)
        made.legend(loc="outside right upper", fontsize=9)
        save(made, folder / BY_SCORE_FILE)
        yield Exhibit("Precision and recall by score", BY_SCORE_FILE)


def best_precision(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """Return at each of `RECALLS` the best precision at that recall or beyond; 0 where it is not reached."""
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return envelope[np.searchsorted(recall, RECALLS - 1e-12)]


def draw_detection_figures(figures: Mapping[str, float], folder: Path) -> Iterator[Exhibit]:
    """Draw what `training.evaluation.evaluate.evaluate` gives for detection; nothing for other protocols."""
    if "calibration_error" in figures:
        _draw_groups(figures, folder / GROUPS_FILE)
        text = "AP and recall at an IoU of 0.5. A group without objects has no bars."
        yield Exhibit("Objects by size and shape", GROUPS_FILE, text)
    if not math.isnan(figures.get("calibration_error", math.nan)):  # without detections it is
        bins = [[figures[f"reliability/{number:02}/{kind}"] for kind in RELIABILITY] for number in range(BINS)]
        _draw_reliability(figures, np.array(bins, float), folder / RELIABILITY_FILE)
        names = [f"{number / BINS:.2f} to {(number + 1) / BINS:.2f}" for number in range(BINS)]
        rows = [[name, *map(format_value, values)] for name, values in zip(names, bins, strict=True)]
        table = markdown_table(["score", "detections", "mean score", "share right"], rows)
        yield Exhibit("Reliability of the scores", RELIABILITY_FILE, table)


def _draw_groups(figures: Mapping[str, float], path: Path) -> None:
    kinds = [kind for kind in BARS if kind in figures]
    made = figure(12.5, 4.4)
    widths = [len(groups) for groups in GROUPINGS.values()]
    panels = made.subplots(1, len(GROUPINGS), sharey=True, width_ratios=widths)
    width = 0.8 / len(kinds)
    for axes, (grouping, groups) in zip(panels, GROUPINGS.items(), strict=True):
        title, labels = TITLES[grouping]
        places = np.arange(len(groups))
        for index, kind in enumerate(kinds):
            values = np.array([figures[f"{kind}/{grouping}/{group}"] for group in groups])
            at = places + (index - (len(kinds) - 1) / 2) * width
            axes.bar(at, np.nan_to_num(values), width, label=BARS[kind], color=f"C{index}")
            for place, value in zip(at, values, strict=True):
                if not np.isnan(value):
                    axes.text(place, value + 0.01, f"{value:.2f}", ha="center", va="bottom", fontsize=7)
        counts = [f"{figures[f'objects/{grouping}/{group}']} objects" for group in groups]
        axes.set_xticks(places, list(map("{}\n{}".format, labels, counts)), fontsize=9)
        axes.set(ylim=(0, 1.08), title=title)
        axes.set_axisbelow(True)
        axes.grid(axis="y", color="0.9")
    handles, names = panels[0].get_legend_handles_labels()
    made.legend(handles, names, loc="outside lower center", ncols=len(kinds), fontsize=9)
    save(made, path)


def _draw_reliability(figures: Mapping[str, float], bins: np.ndarray, path: Path) -> None:
    counts, scores, right = bins.T
    edges = np.linspace(0.0, 1.0, BINS + 1)
    made = figure(6.2, 7.2)
    above, below = made.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.bar(edges[:-1], np.nan_to_num(right), 1 / BINS, align="edge", color="C0", edgecolor="white", alpha=0.6)
    above.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1, label="score = share right")
    above.plot(scores, right, "o", color="C3", markersize=5, label="mean score of the bin")
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share of right detections (IoU 0.5)")
    above.set_title(f"Calibration error {figures['calibration_error']:.3f}", fontsize=11)
    below.bar(edges[:-1], counts, 1 / BINS, align="edge", color="0.6", edgecolor="white")
    below.set_yscale("symlog", linthresh=1)
    below.set(ylim=(0, None), xlabel="score", ylabel="detections")
    if (threshold := figures.get("display_threshold")) is not None:
        for axes in (above, below):
            axes.axvline(threshold, color="C2", linewidth=1.2, label="display threshold")
    for axes in (above, below):
        axes.set_axisbelow(True)
        axes.grid(color="0.9")
    above.legend(loc="upper left", fontsize=9)
    save(made, path)


def draw_scales(found: Sequence[dict[str, Any]], title: str, folder: Path) -> Iterator[Exhibit]:
    """Draw what `ladders.score_rows` gives: a panel an error, a point a row, crops as levels across."""
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
                kind = row["row"].partition(", ")[2] or "dense"  # "fine stride" of "4 scales, fine stride"
                kinds.setdefault(kind, []).append(row)
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
