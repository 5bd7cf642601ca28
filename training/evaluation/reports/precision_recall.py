"""Precision and recall of detection at an IoU of 0.5: against each other by VOC's rules, and against the score."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from training.evaluation.average_precision import VocDetection, area_under
from training.evaluation.metrics import Answer
from training.evaluation.recall import LEVELS, PrecisionRecall
from training.evaluation.reports.exhibits import Exhibit, figure, literal, save, shortened
from training.sources.record import Record

FILE, BY_SCORE_FILE = "detection_precision_recall.png", "detection_by_score.png"
RECALLS = np.linspace(0.0, 1.0, 101)
EACH = 12  # classes with a colour and a name of their own; of more the best and the worst


class PrecisionRecallCurves:
    """Draws each class's curve, and their mean."""

    def __init__(self, class_names: Sequence[str], display_threshold: float | None = None):
        self._names, self._metric = tuple(class_names), VocDetection(class_names)

    def process(self, record: Record, answer: Answer) -> None:
        """Add an image and its detections."""
        self._metric.process(record, answer)

    def draw(self, folder: Path) -> Iterator[Exhibit]:
        """Draw the curves: at each recall the best precision there or beyond."""
        curves = {name: curve for name, curve in zip(self._names, self._metric.curves(), strict=True) if curve}
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


class ScoreCurves:
    """Draws precision, recall and F1 of the detections that reach a score, of all classes together."""

    def __init__(self, class_names: Sequence[str], display_threshold: float | None = None):
        self._threshold, self._metric = display_threshold, PrecisionRecall(class_names)

    def process(self, record: Record, answer: Answer) -> None:
        """Add an image and its detections."""
        self._metric.process(record, answer)

    def draw(self, folder: Path) -> Iterator[Exhibit]:
        """Draw the curves, with the display threshold if there is one."""
        _, (right, wrong, _, missed, precision, recall) = next(self._metric.evaluate())
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
