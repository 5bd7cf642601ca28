"""A handful of records in memory, as a source."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from PIL import Image

from training.sources.formats.digits import DigitScenes
from training.sources.record import Record


@dataclass(frozen=True)
class SmallSource:
    """Records by split."""

    records_of: dict[str, list[Record]]
    class_names: tuple[str, ...] = tuple("0123456789")
    name: str = "small"
    boxed: bool = True

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.records_of)

    def records(self, split: str, limit: int | None = None) -> Iterator[Record]:
        return islice(self.records_of[split], limit)


def few_digits(train: int = 8, val: int = 4) -> SmallSource:
    """Give the first digit scenes that have a digit."""
    scenes = (record for record in DigitScenes().records("train") if len(record.labels))
    return SmallSource({"train": list(islice(scenes, train)), "val": list(islice(scenes, val))})


def picture(height: int, width: int, boxes=(), colour=(255, 255, 255)) -> bytes:
    """Encode bright rectangles - pixels, yxyx - on black."""
    image = np.zeros((height, width, 3), np.uint8)
    for top, left, bottom, right in boxes:
        image[top:bottom, left:right] = colour
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def coloured_rectangles() -> SmallSource:
    """Give rectangles whose colour is their class, an image each, and one image of nothing."""
    records = [Record.of_objects(picture(150, 200), "none", [], [])]
    for label, colour in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255))):
        box = (40, 60 + 20 * label, 100, 110 + 20 * label)
        data = picture(150, 200, [box], colour)
        records.append(Record.of_objects(data, str(label), [np.array(box) / [150, 200, 150, 200]], [label]))
    return SmallSource({"train": records}, class_names=("red", "green", "blue"))


def hue(pixels: np.ndarray) -> int:
    """Name the class of a region of `coloured_rectangles` by its colour."""
    return int(pixels.reshape(-1, 3).mean(axis=0).argmax())
