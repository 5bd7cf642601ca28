"""What a model gets wrong: which classes it takes for which, and the worst mistakes as pictures."""

import heapq
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from overfeat_tf.draw.pictures import draw_boxes
from overfeat_tf.images.decode import decode_image
from overfeat_tf.merge.calibration import UNCALIBRATED_THRESHOLD
from training.evaluation.metrics import Answer, box_iou, match_answer, predicted_labels, right_boxes, right_classes
from training.evaluation.reports.report import Exhibit, figure, literal, markdown_table, save, shortened
from training.sources.record import Record

SHOWN = 20  # classes in the picture, those of most mistakes where there are more; and pairs in the table
NOTHING, OTHERS = -1, -2  # in place of a class
NO_CLASS = {NOTHING: "(nothing)", OTHERS: "(others)"}
KEPT, COLUMNS = 12, 4  # pictures of a sheet
CAPTION = 44  # characters of a line above a picture
SIDE = 300  # pixels of a picture, before it is drawn on: labels can then be read
NO_OBJECTS = np.zeros(0, int)


class _Confusion:
    """Counts pairs of what there was and what it was taken for; few of all possible ones ever come."""

    file, title, note = "", "", ""

    def __init__(self, class_names: Sequence[str], display_threshold: float | None = None):
        self._names = tuple(class_names)
        # The many fainter detections would hide all else.
        self.least_score = UNCALIBRATED_THRESHOLD if display_threshold is None else display_threshold
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
                values[rows[truth], columns.get(guess, -1)] += count  # the last one is of the others
        shares = values / np.maximum(values.sum(axis=1, keepdims=True), 1)
        side = 2.6 + 0.42 * len(taken)
        made = figure(side + 0.4, side)
        axes = made.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in zip(*np.nonzero(values), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            count = values[row, column]
            text = str(count) if count < 10_000 else f"{count / 1000:.0f}k"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
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
        return NO_CLASS[label] if label < 0 else self._names[label]


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
        "row (nothing) has the detections without an object, the column (nothing) the objects not found."
    )

    def process(self, record: Record, answer: Answer) -> None:
        """Count an image's objects and detections."""
        labels, count = predicted_labels(answer), int(answer["num_detections"])
        labels = labels[answer["detection_scores"][:count] >= self.least_score]  # scores fall
        matches = match_answer(record, answer, len(labels), rule="place")
        for label, truth in zip(labels, matches.truth, strict=True):
            if truth < 0 or matches.found[truth]:
                self.counts[NOTHING if truth < 0 else int(record.labels[truth]), int(label)] += 1
        self.counts.update((int(label), NOTHING) for label in record.labels[~matches.found & ~record.difficult])


@dataclass
class Mistake:
    """A record, what was wrong with its answer, and how wrong."""

    weight: float
    record: Record
    caption: str
    objects: np.ndarray  # which are drawn, int
    detection: Answer | None = None  # one row of an answer


class _Sheet:
    """Keeps the worst mistakes of a kind, one an image at most, in a heap."""

    file, title, note = "", "", ""

    def __init__(self, class_names: Sequence[str], display_threshold: float | None = None):
        self._names, self._count = tuple(class_names), 0
        self._heap: list[tuple[float, int, Mistake]] = []  # of equal weights the earlier counts as worse

    def process(self, record: Record, answer: Answer) -> None:
        """Look at an answer; one that can't be read is no mistake to draw."""
        if not answer["status"] and (mistake := self.find(record, answer)) is not None:
            self._count += 1
            heapq.heappush(self._heap, (mistake.weight, -self._count, mistake))
            if len(self._heap) > KEPT:
                heapq.heappop(self._heap)

    def find(self, record: Record, answer: Answer) -> Mistake | None:
        """Return an image's worst mistake of this kind, if any."""
        raise NotImplementedError

    def draw(self, folder: Path) -> Iterator[Exhibit]:
        """Draw the sheet, worst first."""
        if not self._heap:
            return
        worst = [mistake for *_, mistake in sorted(self._heap, reverse=True)]
        columns = min(COLUMNS, len(worst))
        rows = math.ceil(len(worst) / columns)
        pictures = [self._picture(mistake) for mistake in worst]
        tallest = max(picture.height / picture.width for picture in pictures)
        made = figure(3.3 * columns, (3.3 * min(tallest, 1.3) + 0.5) * rows + 0.4)
        cells = made.subplots(rows, columns, squeeze=False).flatten()
        for axes, mistake, picture in zip(cells, worst, pictures, strict=False):
            axes.imshow(picture)
            lines = (shortened(line, CAPTION) for line in mistake.caption.splitlines())
            axes.set_title(literal("\n".join(lines)), fontsize=9)
        for axes in cells:
            axes.set_axis_off()
        made.suptitle(f"{self.title}, worst first", fontsize=11)
        save(made, folder / self.file)
        shown = f"; the worst {len(worst)} are shown" if len(worst) < self._count else ""
        yield Exhibit(self.title, self.file, f"Images with such a mistake: {self._count}{shown}. {self.note}".strip())

    def _picture(self, mistake: Mistake) -> Image.Image:
        picture = Image.fromarray(decode_image(mistake.record.image_bytes)[0].numpy())
        picture.thumbnail((SIDE, SIDE))
        objects = mistake.objects
        names = [shortened(self._names[label]) for label in mistake.record.labels[objects]]
        truth = (mistake.record.boxes[objects], names)
        return draw_boxes(np.asarray(picture), mistake.detection, truth if len(objects) else None)

    def _detection(self, answer: Answer, i: int) -> Answer:
        """Return an answer of one detection, named by the class, for `draw_boxes`."""
        row = {key: answer[key][i : i + 1] for key in ("detection_boxes", "detection_scores", "detection_classes")}
        name = shortened(self._names[predicted_labels(answer)[i]]).encode()
        return {**row, "num_detections": np.array(1), "detection_class_entities": np.array([name], object)}

    def _truth(self, record: Record) -> str:
        names = list(dict.fromkeys(shortened(self._names[label]) for label in record.labels))
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class WrongClasses(_Sheet):
    """Images whose best guess is wrong, the surest first."""

    file, title = "classification_mistakes.png", "Taken for another class"

    def find(self, record: Record, answer: Answer) -> Mistake | None:
        """Return the image if its best guess is none of its classes."""
        if not len(record.labels) or not answer["num_detections"] or right_classes(record, answer)[0]:
            return None
        score, guess = float(answer["detection_scores"][0]), shortened(self._names[predicted_labels(answer)[0]])
        return Mistake(score, record, f"taken for {guess}: {score:.2f}\nis {self._truth(record)}", NO_OBJECTS)


class WrongPlaces(_Sheet):
    """Images whose best guess is of the wrong class or has the wrong box, the surest first."""

    file, title = "localization_mistakes.png", "Wrong class or box"
    note = "White is the truth, coloured the best guess."

    def find(self, record: Record, answer: Answer) -> Mistake | None:
        """Return the image if its best guess is wrong."""
        if not len(record.labels) or not answer["num_detections"] or right_boxes(record, answer)[0]:
            return None
        score, own = float(answer["detection_scores"][0]), record.labels == predicted_labels(answer)[0]
        overlap = box_iou(answer["detection_boxes"][0], record.boxes[own]).max(initial=0.0)
        why = f"box off: IoU {overlap:.2f}" if own.any() else "wrong class"
        objects = np.arange(len(record.labels))
        return Mistake(score, record, f"{why}\nis {self._truth(record)}", objects, self._detection(answer, 0))


class FalsePositives(_Sheet):
    """Each image's highest-scoring detection that is wrong."""

    file, title = "detection_false_positives.png", "False detections"
    note = "Coloured the detection that is wrong, white the objects that it overlaps most."

    def find(self, record: Record, answer: Answer) -> Mistake | None:
        """Return the image's surest wrong detection."""
        wrong = np.flatnonzero(match_answer(record, answer).wrong)
        if not len(wrong):
            return None
        i = int(wrong[0])  # scores fall
        overlaps, label = box_iou(answer["detection_boxes"][i], record.boxes)[0], predicted_labels(answer)[i]
        own = record.labels == label
        nearest = overlaps.argsort()[::-1][:1] if overlaps.any() else NO_OBJECTS
        if (overlaps[own] >= 0.5).any():
            why, nearest = "found twice", np.flatnonzero(own)[[overlaps[own].argmax()]]
        elif overlaps.max(initial=0.0) >= 0.5:
            why = "wrong class"
        elif overlaps.max(initial=0.0) >= 0.1:
            why = f"box off: IoU {overlaps.max():.2f}"
        else:
            why, nearest = "nothing there", NO_OBJECTS
        score = float(answer["detection_scores"][i])
        caption = f"{why}\n{shortened(self._names[label])}: {score:.2f}"
        return Mistake(score, record, caption, nearest, self._detection(answer, i))


class Misses(_Sheet):
    """Each image's largest object that no detection of its class found, however faint."""

    file, title = "detection_misses.png", "Objects not found"
    note = "White the largest object of each image that no detection of its class found, whatever it scored."

    def find(self, record: Record, answer: Answer) -> Mistake | None:
        """Return the image's largest object that was not found."""
        missed = np.flatnonzero(~match_answer(record, answer).found & ~record.difficult)
        if not len(missed):
            return None
        areas = (record.boxes[missed, 2:] - record.boxes[missed, :2]).prod(axis=1)
        largest = missed[[areas.argmax()]]
        name = shortened(self._names[record.labels[largest[0]]])
        return Mistake(float(areas.max()), record, f"{name}\n{areas.max():.1%} of the image", largest)
