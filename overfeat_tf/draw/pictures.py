"""Boxes on pictures, for people to look at."""

import colorsys
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from overfeat_tf.images.decode import decode_image
from overfeat_tf.merge.calibration import displayed

LONGEST_NAME = 230  # bytes; file systems take 255, and suffixes follow
LONGEST = 1600  # pixels: enough for a picture to look at
LEAST_SIDE = 240  # pixels; a smaller picture is enlarged so that a label can be read
LEAST_OBJECT = 48  # pixels: pictures of smaller objects are enlarged likewise, up to `ENLARGED`
ENLARGED = 1200
HIDDEN = 0.25  # of another box's area: a label that would cover more of it is put elsewhere
FILTER = 44  # side in pixels of a filter's picture
Truth = tuple[np.ndarray, Sequence[str]]  # boxes normalised yxyx [n, 4], and their names
Rectangle = tuple[float, float, float, float]  # pixels: left, top, right, bottom


class _Mark(NamedTuple):
    """A box [4], normalised yxyx, with its colour, the texts that it may have, longest first, and where they belong."""

    box: np.ndarray
    colour: str | tuple[int, int, int]
    texts: tuple[str, ...]
    below: bool = False


def file_stem(text: str) -> str:
    """Return the stem of a picture's file name; of a long text the beginning, and a hash of the whole."""
    text = text.replace("/", "_").replace("\0", "_")
    encoded = os.fsencode(text)
    if len(encoded) <= LONGEST_NAME:
        return text
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    return f"{encoded[: LONGEST_NAME - 9].decode(errors='ignore')}~{digest}"


def draw_boxes(
    image: bytes | np.ndarray,
    answer: Mapping[str, np.ndarray] | None = None,
    truth: Truth | None = None,
    least_score: float = 0.0,
    several: bool = False,
    enlarge: bool = False,
) -> Image.Image:
    """Draw the detections of one image, labelled with class and score, and the true boxes in white beneath.

    A label that would hide another box or label goes below its box, is shortened to the score, or is left out.

    Args:
        image: Encoded, or uint8 [H, W, 3].
        answer: One image's rows of the contract's outputs.
        truth: True boxes and names.
        least_score: Leave out detections that score less.
        several: Draw detections that overlap a better one, too.
        enlarge: Enlarge a picture of small objects, to be looked at by itself: not on a sheet, nor in a video.

    Raises:
        ValueError: the image can't be read.
    """
    marks: list[_Mark] = []
    if truth is not None:
        marks += [_Mark(box, "white", (name,), answer is not None) for box, name in zip(*truth, strict=True)]
    if answer is not None:
        count = int(answer["num_detections"])
        boxes, scores = answer["detection_boxes"][:count], answer["detection_scores"][:count]
        for i in np.flatnonzero(displayed(boxes, scores, least_score, several))[::-1]:  # the best one on top
            name, score = answer["detection_class_entities"][i].decode(), f"{scores[i]:.2f}"
            colour = class_colour(int(answer["detection_classes"][i]))
            marks.append(_Mark(boxes[i], colour, (f"{name}: {score}", score)))
    picture = _open(image, [mark.box for mark in marks] if enlarge else ())
    pen = ImageDraw.Draw(picture)
    line = max(1, round(max(picture.size) / 300))
    font = ImageFont.load_default(max(11, round(max(picture.size) / 45)))
    corners = [_corners(mark.box, picture.size) for mark in marks]
    for mark, edges in zip(marks, corners, strict=True):
        xmin, ymin, xmax, ymax = edges
        pen.rectangle((xmin - 1, ymin - 1, xmax + 1, ymax + 1), outline="black", width=line + 2)  # on bright images too
        pen.rectangle(edges, outline=mark.colour, width=line)
    labels: list[Rectangle] = []
    for number in reversed(range(len(marks))):  # the best one has the first choice
        others = corners[:number] + corners[number + 1 :]
        placed = _place_label(pen, font, marks[number], corners[number], picture.size, labels, others)
        if placed is not None:
            text, label = placed
            labels.append(label)
            left, top, *_ = pen.textbbox((0, 0), text, font=font)
            pen.rectangle(label, fill=marks[number].colour, outline="black")
            pen.text((label[0] + 2 - left, label[1] + 2 - top), text, fill="black", font=font)
    return picture


def draw_classes(image: bytes | np.ndarray, classes: Sequence[tuple[str, float | None]]) -> Image.Image:
    """Write an image's classes and scores, best first, into its upper left corner.

    Args:
        image: Encoded, or uint8 [H, W, 3].
        classes: Names and scores; None where there is none to write.

    Raises:
        ValueError: the image can't be read.
    """
    picture = _open(image)
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(11, round(max(picture.size) / 45)))
    text = "\n".join(name if score is None else f"{score:.2f}  {name}" for name, score in classes)
    left, top, right, bottom = pen.multiline_textbbox((8, 6), text, font=font)
    pen.rectangle((left - 6, top - 5, right + 6, bottom + 5), fill="black")
    pen.multiline_text((8, 6), text, fill="white", font=font)
    return picture


def contact_sheet(
    pictures: Sequence[Image.Image], columns: int, cell: int = 300, titles: Sequence[str] = ()
) -> Image.Image:
    """Lay pictures out in rows, each shrunk or enlarged into a square cell of `cell` pixels, under column titles."""
    gap, head = 6, 26 if titles else 0
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * (cell + gap) + gap, rows * (cell + gap) + gap + head), (32, 32, 32))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for column, title in enumerate(titles):
        pen.text((gap + column * (cell + gap), 6), title, fill="white", font=font)
    for number, picture in enumerate(pictures):
        factor = cell / max(picture.size)
        small = picture.resize((max(1, round(picture.width * factor)), max(1, round(picture.height * factor))))
        x, y = gap + number % columns * (cell + gap), head + gap + number // columns * (cell + gap)
        sheet.paste(small, (x + (cell - small.width) // 2, y + (cell - small.height) // 2))
    return sheet


def draw_filters(kernels: np.ndarray) -> Image.Image:
    """Draw the first layer's filters (Fig. 2), each stretched to its own range: what a filter weighs is its pattern.

    `kernels` is float [side, side, 3, filters].
    """
    least, most = kernels.min(axis=(0, 1, 2)), kernels.max(axis=(0, 1, 2))
    pixels = ((kernels - least) / np.maximum(most - least, 1e-12) * 255).astype(np.uint8)
    pictures = [Image.fromarray(pixels[..., number]).resize((FILTER, FILTER), 0) for number in range(pixels.shape[-1])]
    return contact_sheet(pictures, math.ceil(math.sqrt(len(pictures))), FILTER)


def class_colour(number: int) -> tuple[int, int, int]:
    """Return a bright colour for a class, far from its neighbours', RGB 0..255."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1.0, 0.85, 1.0)  # golden ratio: neighbours differ
    return round(red * 255), round(green * 255), round(blue * 255)


def _open(image: bytes | np.ndarray, boxes: Sequence[np.ndarray] = ()) -> Image.Image:
    """Open a picture to draw boxes on, normalised yxyx; it is shrunk or enlarged to be looked at."""
    if isinstance(image, bytes):
        pixels, status = decode_image(image)
        if status.numpy():
            raise ValueError(status.numpy().decode())
        picture = Image.fromarray(pixels.numpy())
    else:
        picture = Image.fromarray(image)
    picture.thumbnail((LONGEST, LONGEST))
    longest = max(picture.size)
    wanted = float(LEAST_SIDE)
    if len(boxes):
        edges = np.reshape(boxes, [-1, 4]) * ([picture.height, picture.width] * 2)
        shorter = np.minimum(edges[:, 2] - edges[:, 0], edges[:, 3] - edges[:, 1])
        wanted = max(wanted, min(ENLARGED, longest * LEAST_OBJECT / max(float(np.median(shorter)), 1.0)))
    if longest < wanted:
        factor = wanted / longest
        picture = picture.resize((max(1, round(picture.width * factor)), max(1, round(picture.height * factor))))
    return picture


def _corners(box: np.ndarray, size: tuple[int, int]) -> Rectangle:
    """Return where a normalised yxyx box lies on a picture of (width, height): pixels (xmin, ymin, xmax, ymax)."""
    width, height = size
    ymin, xmin, ymax, xmax = (float(edge) for edge in box)
    return xmin * width, ymin * height, max(xmax * width - 1, xmin * width), max(ymax * height - 1, ymin * height)


def _place_label(
    pen: ImageDraw.ImageDraw,
    font: Any,
    mark: _Mark,
    corners: Rectangle,
    size: tuple[int, int],
    labels: Sequence[Rectangle],
    others: Sequence[Rectangle],
) -> tuple[str, Rectangle] | None:
    """Find a text of a mark's and a place for it, above its box or below, that hides no other label or box.

    Returns:
        The text and its label's rectangle; None where nothing fits.
    """
    width, height = size
    for text in mark.texts:
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        wide, high = right - left + 4, bottom - top + 5
        x = min(max(0.0, corners[0]), max(0.0, width - wide))
        ys = [corners[1] - high - 1, corners[3]]
        for y in reversed(ys) if mark.below else ys:
            y = min(max(0.0, y), max(0.0, float(height - high - 1)))
            label = (x, y, x + wide, y + high)
            free = all(_overlap(label, other) == 0 for other in labels)
            if free and all(_overlap(label, other) <= HIDDEN * _overlap(other, other) for other in others):
                return text, label
    return None


def _overlap(one: Rectangle, other: Rectangle) -> float:
    """Return the area that two rectangles share."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(across, 0.0) * max(down, 0.0)
