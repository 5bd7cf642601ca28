"""The worst mistakes as pictures, a sheet per kind. Only the images that are drawn are kept."""

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from overfeat_tf.draw.pictures import draw_boxes
from overfeat_tf.images.decode import decode_image
from training.evaluation.matching import box_iou, match_answer
from training.evaluation.metrics import Answer, predicted_labels, right_boxes, right_classes
from training.evaluation.reports.exhibits import Exhibit, figure, listed, literal, save, shortened
from training.sources.record import Record

KEPT, COLUMNS = 12, 4  # pictures of a sheet
CAPTION = 44  # characters of a line above a picture
SIDE = 300  # pixels of a picture, before it is drawn on: labels can then be read


@dataclass(order=True)
class Mistake:
    """A record, what was wrong with its answer, and how wrong; the earlier of two counts as worse."""

    weight: float
    number: int  # falling
    record: Record = field(compare=False)
    caption: str = field(compare=False)
    objects: np.ndarray = field(compare=False)  # which are drawn, int
    detection: dict[str, np.ndarray] | None = field(compare=False, default=None)  # one row of an answer


class _Sheet:
    """Keeps the worst mistakes of a kind, one an image at most, in a heap."""

    file, title, note = "", "", ""

    def __init__(self, class_names: Sequence[str], display_threshold: float | None = None):
        self._names, self._heap, self._count = tuple(class_names), list[Mistake](), 0

    def process(self, record: Record, answer: Answer) -> None:
        """Look at an answer; one that can't be read is no mistake to draw."""
        if not answer["status"] and (mistake := self.find(record, answer)) is not None:
            self._count += 1
            mistake.number = -self._count
            if len(self._heap) < KEPT:
                heapq.heappush(self._heap, mistake)
            else:
                heapq.heappushpop(self._heap, mistake)

    def find(self, record: Record, answer: Answer) -> Mistake | None:
        """Return an image's worst mistake of this kind, if any."""
        raise NotImplementedError

    def draw(self, folder: Path) -> Iterator[Exhibit]:
        """Draw the sheet, worst first."""
        if not self._heap:
            return
        worst = sorted(self._heap, reverse=True)
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
        which = f"{len(worst)} of the {self._count}" if len(worst) < self._count else f"All {self._count}"
        yield Exhibit(self.title, self.file, f"{which} images with such a mistake. {self.note}".strip())

    def _picture(self, mistake: Mistake) -> Image.Image:
        picture = Image.fromarray(decode_image(mistake.record.image_bytes)[0].numpy())
        picture.thumbnail((SIDE, SIDE))
        objects = mistake.objects
        names = [shortened(self._names[label]) for label in mistake.record.labels[objects]]
        truth = (mistake.record.boxes[objects], names)
        return draw_boxes(np.asarray(picture), mistake.detection, truth if len(objects) else None)

    def _detection(self, answer: Answer, i: int) -> dict[str, np.ndarray]:
        name = shortened(self._names[int(answer["detection_classes"][i]) - 1]).encode()
        row = {key: answer[f"detection_{key}"][i : i + 1] for key in ("boxes", "scores", "classes")}
        entities = np.array([name], object)
        return {**{f"detection_{key}": value for key, value in row.items()}, "num_detections": np.array(1)} | {
            "detection_class_entities": entities
        }

    def _truth(self, record: Record) -> str:
        return listed([shortened(self._names[label]) for label in record.labels])


NO_OBJECTS = np.zeros(0, int)


class WrongClasses(_Sheet):
    """Images whose best guess is wrong, the surest first."""

    file, title = "classification_mistakes.png", "Taken for another class"

    def find(self, record: Record, answer: Answer) -> Mistake | None:
        """Return the image if its best guess is none of its classes."""
        if not len(record.labels) or not answer["num_detections"] or right_classes(record, answer)[0]:
            return None
        score, guess = float(answer["detection_scores"][0]), shortened(self._names[predicted_labels(answer)[0]])
        return Mistake(score, 0, record, f"taken for {guess}: {score:.2f}\nis {self._truth(record)}", NO_OBJECTS)


class WrongPlaces(_Sheet):
    """Images whose best guess is of the wrong class or has the wrong box, the surest first."""

    file, title = "localization_mistakes.png", "Wrong class or box"
    note = "White is the truth, coloured the best guess."

    def find(self, record: Record, answer: Answer) -> Mistake | None:
        """Return the image if its best guess is wrong."""
        if not len(record.labels) or not record.boxed.all() or not answer["num_detections"]:
            return None
        if right_boxes(record, answer)[0]:
            return None
        score, own = float(answer["detection_scores"][0]), record.labels == predicted_labels(answer)[0]
        overlap = box_iou(answer["detection_boxes"][0], record.boxes[own]).max(initial=0.0)
        why = f"box off: IoU {overlap:.2f}" if own.any() else "wrong class"
        objects = np.arange(len(record.labels))
        return Mistake(score, 0, record, f"{why}\nis {self._truth(record)}", objects, self._detection(answer, 0))


class FalsePositives(_Sheet):
    """Each image's highest-scoring detection that is wrong."""

    file, title = "detection_false_positives.png", "False detections"
    note = "Coloured the detection that is wrong, white the objects that it overlaps most."

    def find(self, record: Record, answer: Answer) -> Mistake | None:
        """Return the image's surest wrong detection."""
        if not record.boxed.all():
            return None
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
        return Mistake(score, 0, record, caption, nearest, self._detection(answer, i))


class Misses(_Sheet):
    """Each image's largest object that no detection of its class found, however faint."""

    file, title = "detection_misses.png", "Objects not found"
    note = "White the largest object of each image that no detection of its class found, whatever it scored."

    def find(self, record: Record, answer: Answer) -> Mistake | None:
        """Return the image's largest object that was not found."""
        if not record.boxed.all():
            return None
        missed = np.flatnonzero(~match_answer(record, answer).found & ~record.difficult)
        if not len(missed):
            return None
        areas = (record.boxes[missed, 2:] - record.boxes[missed, :2]).prod(axis=1)
        largest = missed[[areas.argmax()]]
        name = shortened(self._names[record.labels[largest[0]]])
        return Mistake(float(areas.max()), 0, record, f"{name}\n{areas.max():.1%} of the image", largest)
