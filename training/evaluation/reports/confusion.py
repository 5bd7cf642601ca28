"""Which classes are taken for which, and for nothing at all."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from training.evaluation.matching import match_answer
from training.evaluation.metrics import Answer, predicted_labels
from training.evaluation.reports.exhibits import Exhibit, figure, literal, markdown_table, save, shortened
from training.sources.record import Record

SHOWN = 20  # classes in the picture, those of most mistakes where there are more; and pairs in the table
NOTHING, OTHERS = -1, -2  # in place of a class
# Of a detection that counts, where the model has no display threshold. The many fainter ones would hide all else.
LEAST_SCORE = 0.5


class _Confusion:
    """Counts pairs of what there was and what it was taken for; few of all possible ones ever come."""

    file, title, note = "", "", ""

    def __init__(self, class_names: Sequence[str], display_threshold: float | None = None):
        self._names = tuple(class_names)
        self.least_score = LEAST_SCORE if display_threshold is None else display_threshold
        self.counts: Counter[tuple[int, int]] = Counter()

    def draw(self, folder: Path) -> Iterator[Exhibit]:
        """Draw the matrix, and list the commonest mistakes."""
        if not self.counts:
            return
        wrong = Counter({pair: count for pair, count in self.counts.items() if pair[0] != pair[1]})
        rows = [[self._name(a), self._name(b), str(count)] for (a, b), count in wrong.most_common(SHOWN)]
        text = markdown_table(["what it is", "taken for", "times"], rows) if rows else "No mistakes."
        self._draw_matrix(folder / self.file, wrong)
        yield Exhibit(self.title, self.file, f"{self.note.format(self.least_score)}\n\n{text}")

    def _draw_matrix(self, path: Path, wrong: Counter) -> None:
        labels = self._shown(wrong)
        background = any(NOTHING in pair for pair in self.counts)
        truths = [*labels, *([NOTHING] if background else [])]
        taken = [*truths, *([OTHERS] if len(labels) < len(self._names) else [])]
        values = np.zeros((len(truths), len(taken)), int)
        rows, columns = ({label: i for i, label in enumerate(axis)} for axis in (truths, taken))
        for (truth, guess), count in self.counts.items():
            if truth in rows:
                values[rows[truth], columns.get(guess, columns.get(OTHERS, 0))] += count
        shares = values / np.maximum(values.sum(axis=1, keepdims=True), 1)
        side = 2.6 + 0.42 * len(taken)
        made = figure(side + 0.4, side)
        axes = made.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in zip(*np.nonzero(values), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, _brief(int(values[row, column])), ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(len(taken)), [self._label(n) for n in taken], rotation=90, fontsize=9)
        axes.set_yticks(range(len(truths)), [self._label(n) for n in truths], fontsize=9)
        axes.set_xlabel("taken for")
        axes.set_ylabel("what it is")
        few = f"; the {len(labels)} of {len(self._names)} classes with most mistakes" if OTHERS in taken else ""
        made.suptitle(f"{self.title}{few}\ncounts; the colour is the share of the row", fontsize=10)
        save(made, path)

    def _shown(self, wrong: Counter) -> list[int]:
        if len(self._names) <= SHOWN:
            return list(range(len(self._names)))
        errors: Counter[int] = Counter()
        for pair, count in wrong.items():
            errors.update({label: count for label in pair if label >= 0})
        return sorted(label for label, _ in errors.most_common(SHOWN))

    def _label(self, label: int) -> str:
        return literal(shortened(self._name(label)))

    def _name(self, label: int) -> str:
        return {NOTHING: "(nothing)", OTHERS: "(others)"}.get(label) or self._names[label]


class ClassConfusion(_Confusion):
    """Counts what each image's best guess takes it for; an image of several classes is any of them."""

    file, title = "classification_confusion.png", "Classes taken for others"
    note = "Each image's best guess; an image of several classes counts as the one guessed, or else as its first."

    def process(self, record: Record, answer: Answer) -> None:
        """Count an image that has objects."""
        if len(record.labels):
            guess = int(predicted_labels(answer)[0]) if answer["num_detections"] else NOTHING
            self.counts[guess if guess in record.labels else int(record.labels[0]), guess] += 1


class DetectionConfusion(_Confusion):
    """Counts what each object is found as: matched by place, at an IoU of 0.5, its own class preferred."""

    file, title = "detection_confusion.png", "Objects taken for others"
    note = (
        "Detections that score at least {:.2g}, matched with objects by place at an IoU of 0.5, each at most once; the "
        "row (nothing) has those where no object is, the column (nothing) the objects not found."
    )

    def process(self, record: Record, answer: Answer) -> None:
        """Count an image's objects and detections, unless it has a class without a box."""
        if not record.boxed.all():
            return
        labels, count = predicted_labels(answer), int(answer["num_detections"])
        labels = labels[answer["detection_scores"][:count] >= self.least_score]  # scores fall
        matches = match_answer(record, answer, len(labels), rule="place")
        for label, truth in zip(labels, matches.truth, strict=True):
            if truth < 0 or matches.found[truth]:
                self.counts[NOTHING if truth < 0 else int(record.labels[truth]), int(label)] += 1
        self.counts.update((int(label), NOTHING) for label in record.labels[~matches.found & ~record.difficult])


def _brief(count: int) -> str:
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k"
