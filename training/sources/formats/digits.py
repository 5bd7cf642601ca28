"""Digit scenes: real handwritten digits scattered over photographs, made from scikit-learn's bundled data.

`load_digits` has 1797 digits of 8x8 pixels from the UCI test set; `load_sample_images` has two photographs of
427x640. Splits share neither digits nor parts of the photographs. Scene i of a split depends on the seed, the
split and i alone.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from training.sources.record import Record, check_split

SIDES = (192, 320)  # pixels, a scene's height and width
ASPECT = 1.6  # the longer side over the shorter, at most
SIZES = (20, 120)  # pixels, a digit's longer side
MOST_DIGITS = 6
CONTRAST = 90  # least difference in luma between a digit and what it lies on: what a person needs to read it
INK = 0.3  # opacity from which a pixel belongs to the box
LUMA = np.array([0.299, 0.587, 0.114])

# The photographs are cut into 2 rows of 4 cells; a split takes whole cells, dealt so that each sees some of all that
# is on them. (number of scenes, digits by index modulo 10, cells as (row, column))
CELLS = (2, 4)
SPLITS = {
    "train": (2400, range(0, 7), ((0, 1), (0, 2), (0, 3), (1, 1), (1, 3))),
    "val": (200, range(7, 8), ((1, 0),)),
    "test": (500, range(8, 10), ((0, 0), (1, 2))),
}


@dataclass(frozen=True)
class DigitScenes:
    """The embedded source `digits`."""

    seed: int = 0
    name: str = "digits"
    class_names: tuple[str, ...] = tuple("0123456789")
    splits: tuple[str, ...] = tuple(SPLITS)
    boxed: bool = True

    def records(self, split: str, limit: int | None = None) -> Iterator[Record]:
        """Yield the split's scenes, the first `limit` of them."""
        check_split(self, split)
        for index in range(min(SPLITS[split][0], limit if limit is not None else SPLITS[split][0])):
            yield _scene(self.seed, split, index)


def open_digits(rest: str, report: object) -> DigitScenes:
    """Open the scenes, which have neither a place nor faults."""
    return DigitScenes()


@lru_cache(maxsize=sum(scenes for scenes, _, _ in SPLITS.values()))  # 5 ms and 30 kB each: drawn once a process
def _scene(seed: int, split: str, index: int) -> Record:
    """Draw one scene as a JPEG of quality 95, with tight boxes around the ink."""
    rng = np.random.default_rng([seed, list(SPLITS).index(split), index])
    canvas = _background(rng, split)
    height, width = canvas.shape[:2]
    boxes: list[tuple[float, float, float, float]] = []
    labels: list[int] = []
    for _ in range(rng.integers(0, MOST_DIGITS + 1)):
        glyph, label = _glyph(rng, split)
        place = _free_place(rng, glyph.shape, (height, width), boxes)
        if place is None:  # a full scene has fewer digits
            continue
        boxes.append(_paint(rng, canvas, glyph, place))
        labels.append(label)
    encoded = io.BytesIO()
    Image.fromarray(canvas).save(encoded, "JPEG", quality=95)
    normalised = np.asarray(boxes, np.float32).reshape(-1, 4) / np.array([height, width, height, width], np.float32)
    return Record.of_objects(encoded.getvalue(), f"digits-{split}-{index:05d}", normalised, labels)


@lru_cache(maxsize=1)
def _bundled() -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise ImportError("the source 'digits' needs scikit-learn: pip install scikit-learn") from error
    digits = load_digits()
    return (digits.images / 16.0).astype(np.float32), digits.target, load_sample_images().images


def _background(rng: np.random.Generator, split: str) -> np.ndarray:
    """Crop a part of a photograph, uint8 [H, W, 3] of random size, aspect, zoom, mirroring and brightness."""
    height = int(rng.integers(SIDES[0], SIDES[1] + 1))
    width = int(np.clip(height * ASPECT ** rng.uniform(-1, 1), *SIDES))
    photograph = _bundled()[2][rng.integers(2)]
    cell = SPLITS[split][2][rng.integers(len(SPLITS[split][2]))]
    top, left, bottom, right = cell_edges(cell, photograph.shape[:2])
    part = photograph[top:bottom, left:right]
    zoom = min(part.shape[0] / height, part.shape[1] / width) * rng.uniform(0.4, 1.0)
    h, w = max(1, int(height * zoom)), max(1, int(width * zoom))
    y, x = rng.integers(part.shape[0] - h + 1), rng.integers(part.shape[1] - w + 1)
    crop = part[y : y + h, x : x + w]
    crop = crop[:: rng.choice([1, -1]), :: rng.choice([1, -1])]
    resized = np.asarray(Image.fromarray(np.ascontiguousarray(crop)).resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(resized * rng.uniform(0.7, 1.15), 0, 255).astype(np.uint8)


def cell_edges(cell: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the edges (top, left, bottom, right) in pixels of a photograph's cell."""
    rows, columns = ([round(side * i / n) for i in range(n + 1)] for side, n in zip(size, CELLS, strict=True))
    return rows[cell[0]], columns[cell[1]], rows[cell[0] + 1], columns[cell[1] + 1]


def _glyph(rng: np.random.Generator, split: str) -> tuple[np.ndarray, int]:
    """Pick a digit of the split, cropped to its ink and enlarged: opacity [h, w] in 0..1, and its label."""
    images, targets, _ = _bundled()
    index = int(rng.integers(len(images) // 10)) * 10 + int(rng.choice(SPLITS[split][1]))
    ink = images[index]
    rows, columns = np.flatnonzero(ink.max(axis=1) > INK), np.flatnonzero(ink.max(axis=0) > INK)
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    ink = np.pad(ink, 1)  # room for the soft edge
    size = float(np.exp(rng.uniform(*np.log(SIZES))))
    scale = size / (max(ink.shape) - 2)
    side = tuple(max(2, round(n * scale)) for n in ink.shape)
    enlarged = Image.fromarray(ink).resize((side[1], side[0]), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(enlarged) * 1.2, 0.0, 1.0), int(targets[index])


def _free_place(rng, shape, canvas, taken) -> tuple[int, int] | None:
    """Find a place where the glyph covers no digit already there; None if twenty tries find none."""
    if shape[0] > canvas[0] or shape[1] > canvas[1]:
        return None
    for _ in range(20):
        y, x = int(rng.integers(canvas[0] - shape[0] + 1)), int(rng.integers(canvas[1] - shape[1] + 1))
        if all(y >= b[2] or x >= b[3] or y + shape[0] <= b[0] or x + shape[1] <= b[1] for b in taken):
            return y, x
    return None


def _paint(rng, canvas, glyph, place) -> tuple[float, float, float, float]:
    """Blend a glyph into the canvas in place, in a colour that can be read there; return its box in pixels."""
    y, x = place
    region = canvas[y : y + glyph.shape[0], x : x + glyph.shape[1]]
    under = float(region.reshape(-1, 3).mean(axis=0) @ LUMA)
    colour = rng.integers(0, 256, 3)
    while abs(colour @ LUMA - under) < CONTRAST:
        colour = rng.integers(0, 256, 3)
    alpha = glyph[..., None] * rng.uniform(0.8, 1.0)
    region[:] = (region * (1 - alpha) + colour * alpha).astype(np.uint8)
    rows, columns = np.flatnonzero(glyph.max(axis=1) > INK), np.flatnonzero(glyph.max(axis=0) > INK)
    return (y + rows[0], x + columns[0], y + rows[-1] + 1, x + columns[-1] + 1)
