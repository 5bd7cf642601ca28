"""Boxes on pictures, for people to look at."""

import colorsys
import hashlib
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from overfeat_tf.images.decode import decode_image
from overfeat_tf.merge.calibration import displayed

LONGEST_NAME = 230  # bytes; file systems take 255, and suffixes follow
LONGEST = 1600  # pixels: enough for a picture to look at
FILTER = 44  # side in pixels of a filter's picture
Truth = tuple[np.ndarray, Sequence[str]]  # boxes normalised yxyx [n, 4], and their names


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
) -> Image.Image:
    """Draw the detections of one image, labelled with class and score, and the true boxes in white beneath.

    Args:
        image: Encoded, or uint8 [H, W, 3].
        answer: One image's rows of the contract's outputs.
        truth: True boxes and names.
        least_score: Leave out detections that score less.
        several: Draw detections that overlap a better one, too.

    Raises:
        ValueError: the image can't be read.
    """
    picture = _open(image)
    pen = ImageDraw.Draw(picture)
    line = max(1, round(max(picture.size) / 300))
    font = ImageFont.load_default(max(11, round(max(picture.size) / 45)))
    if truth is not None:
        for box, name in zip(*truth, strict=True):
            _box(pen, box, picture.size, "white", name, font, line, below=answer is not None)
    if answer is not None:
        count = int(answer["num_detections"])
        boxes, scores = answer["detection_boxes"][:count], answer["detection_scores"][:count]
        for i in np.flatnonzero(displayed(boxes, scores, least_score, several))[::-1]:  # the best one's label on top
            name = answer["detection_class_entities"][i].decode()
            colour = class_colour(int(answer["detection_classes"][i]))
            _box(pen, boxes[i], picture.size, colour, f"{name}: {scores[i]:.2f}", font, line)
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


def _open(image: bytes | np.ndarray) -> Image.Image:
    if isinstance(image, bytes):
        pixels, status = decode_image(image)
        if status.numpy():
            raise ValueError(status.numpy().decode())
        picture = Image.fromarray(pixels.numpy())
    else:
        picture = Image.fromarray(image)
    picture.thumbnail((LONGEST, LONGEST))
    if max(picture.size) < 240:  # too small for a label to be read
        factor = 240 / max(picture.size)
        picture = picture.resize((max(1, round(picture.width * factor)), max(1, round(picture.height * factor))))
    return picture


def _box(pen, box, size, colour, text, font, line, below: bool = False) -> None:
    width, height = size
    ymin, xmin, ymax, xmax = (float(edge) for edge in box)
    corners = [xmin * width, ymin * height, max(xmax * width - 1, xmin * width), max(ymax * height - 1, ymin * height)]
    around = [corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1]
    pen.rectangle(around, outline="black", width=line + 2)  # seen on bright images too
    pen.rectangle(corners, outline=colour, width=line)
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    x = min(max(0, corners[0]), max(0, width - (right - left) - 4))
    y = corners[3] if below else corners[1] - (bottom - top) - 6
    y = min(max(0, y), height - (bottom - top) - 6)
    pen.rectangle((x, y, x + right - left + 4, y + bottom - top + 5), fill=colour, outline="black")
    pen.text((x + 2 - left, y + 2 - top), text, fill="black", font=font)
