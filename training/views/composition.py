"""Changes of an image that go beyond a part of it: four images as one, rotation, a rectangle painted over.

Pure functions of chances, numbers in 0..1, as in `augmentation`. Boxes stay true: where an image is turned, a box holds
the turned corners of the one before.
"""

from math import log, pi
from typing import NamedTuple

import tensorflow as tf

from overfeat_tf import boxes as box_ops
from overfeat_tf.images.decode import decode_image

PARTNERS = 3  # images besides its own in a mosaic
SMALLEST = 32  # pixels of the shorter side, below which an image is no part of a mosaic
ERASED, ASPECT = (0.02, 0.2), 3.0  # least and greatest share of a picture; greatest aspect (Zhong et al. 2020)


class Scene(NamedTuple):
    """An image and its n objects: pixels uint8 [H, W, 3], boxes float32 [n, 4] normalised, labels int32, crowd bool."""

    pixels: tf.Tensor
    boxes: tf.Tensor
    labels: tf.Tensor
    crowd: tf.Tensor


def mosaic(position: tf.Tensor, scene: Scene, partners: dict[str, tf.Tensor], fill: float) -> Scene:
    """Lay an image and three others out as the quarters of one of the same size, each in its own aspect.

    Args:
        position: In 0..1: which quarter is the image's own.
        scene: The image and its objects, which come first in what is returned.
        partners: "image_bytes" string [3]; "boxes", "labels" and "crowd" of all their objects, and "owner", int32 [m],
            which of the three each is in. An image that can't be read leaves its quarter empty.
        fill: Value of the pixels that no image covers.
    """
    height, width = tf.unstack(tf.shape(scene.pixels)[:2])
    middle = tf.stack([height, width]) // 2
    own = tf.minimum(tf.cast(position * 4.0, tf.int32), 3)
    total, covered = tf.zeros_like(scene.pixels), tf.zeros([height, width, 1], tf.uint8)
    boxes, labels, crowds = [], [], []
    for number in range(PARTNERS + 1):
        quarter = (own + number) % 4
        second = tf.stack([quarter // 2, quarter % 2])  # whether it is below, and to the right of, the middle
        quarter_size = tf.where(second > 0, tf.stack([height, width]) - middle, middle)
        pixels = scene.pixels
        objects = (scene.boxes, scene.labels, scene.crowd)
        if number:
            pixels = decode_image(partners["image_bytes"][number - 1])[0]
            mine = (partners["owner"] == number - 1) & (tf.size(pixels) > 0)
            objects = tuple(tf.boolean_mask(partners[key], mine) for key in ("boxes", "labels", "crowd"))
        size = tf.cast(tf.maximum(tf.shape(pixels)[:2], 1), tf.float32)
        factor = tf.reduce_min(tf.cast(quarter_size, tf.float32) / size)
        extent = tf.minimum(tf.maximum(tf.cast(tf.round(size * factor), tf.int32), 1), quarter_size)
        first = tf.where(second > 0, middle, middle - extent)

        def shrunk(pixels: tf.Tensor = pixels, extent: tf.Tensor = extent) -> tf.Tensor:
            return tf.cast(tf.image.resize(pixels, extent, antialias=True) + 0.5, tf.uint8)

        def empty(extent: tf.Tensor = extent) -> tf.Tensor:
            return tf.cast(tf.fill(tf.concat([extent, [3]], 0), round(fill)), tf.uint8)

        part = tf.cond(tf.size(pixels) > 0, shrunk, empty)
        around = tf.stack([first, tf.stack([height, width]) - first - extent], axis=1)
        around = tf.concat([around, [[0, 0]]], axis=0)
        total += tf.pad(part, around)
        covered += tf.pad(tf.ones_like(part[..., :1]), around)
        shift, scale = (tf.cast(tf.concat([pair, pair], 0), tf.float32) for pair in (first, extent))
        boxes.append((shift + objects[0] * scale) / tf.cast(tf.stack([height, width] * 2), tf.float32))
        labels.append(objects[1])
        crowds.append(objects[2])
    pixels = tf.where(covered > 0, total, tf.cast(round(fill), tf.uint8))
    return Scene(pixels, tf.concat(boxes, 0), tf.concat(labels, 0), tf.concat(crowds, 0))


def rotate(angle: tf.Tensor, pixels: tf.Tensor, boxes: tf.Tensor, fill: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Turn an image uint8 [H, W, 3] by an angle in radians, anticlockwise; the picture grows, so that nothing is lost.

    Returns:
        The pixels, and the boxes [n, 4] around the turned corners of `boxes`, normalised.
    """
    sides = tf.cast(tf.shape(pixels)[:2], tf.float32)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    extents = tf.abs(tf.stack([[cosine, sine], [sine, cosine]]))
    grown = tf.math.ceil(tf.linalg.matvec(extents, sides) - 1e-3)
    (cy, cx), (ny, nx) = tf.unstack(sides / 2.0), tf.unstack(grown / 2.0)
    # From the centre of each new pixel to where it was, which lies clockwise.
    to_x = [cosine, -sine, cx - 0.5 - cosine * (nx - 0.5) + sine * (ny - 0.5)]
    to_y = [sine, cosine, cy - 0.5 - sine * (nx - 0.5) - cosine * (ny - 0.5)]
    turned = tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels[None],
        transforms=tf.stack([*to_x, *to_y, 0.0, 0.0])[None],
        output_shape=tf.cast(grown, tf.int32),
        fill_value=fill,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )[0]
    corners = tf.stack([tf.gather(boxes, pair, axis=1) for pair in ((0, 1), (0, 3), (2, 1), (2, 3))], axis=1)
    y, x = tf.unstack(corners * sides - sides / 2.0, axis=-1)  # [n, 4], from the middle
    moved = tf.stack([cosine * y - sine * x + ny, sine * y + cosine * x + nx], axis=-1) / grown
    return turned, tf.concat([tf.reduce_min(moved, axis=1), tf.reduce_max(moved, axis=1)], axis=1)


def erase(
    chances: tf.Tensor, pixels: tf.Tensor, boxes: tf.Tensor, subject: tf.Tensor, most: float, fill: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Paint a rectangle over a picture, but not where it would hide more than `most` of the object `subject`.

    Args:
        chances: float32 [4] in 0..1: the rectangle's area, aspect, top and left.
        pixels: uint8 [H, W, 3].
        boxes: float32 [n, 4], normalised.
        subject: int32 scalar; -1 for none.
        most: A share.
        fill: Value of the painted pixels.

    Returns:
        The pixels, and the share of each box that is hidden: float32 [n].
    """
    area = ERASED[0] + (ERASED[1] - ERASED[0]) * chances[0]
    aspect = tf.exp((2.0 * chances[1] - 1.0) * log(ASPECT))
    extent = tf.minimum(tf.sqrt(tf.stack([area * aspect, area / aspect])), 1.0)
    corner = chances[2:4] * (1.0 - extent)
    rectangle = tf.concat([corner, corner + extent], axis=0)
    hidden = tf.math.divide_no_nan(box_ops.intersection(rectangle, boxes), box_ops.area(boxes))
    done = tf.reduce_all(tf.where(tf.range(tf.size(hidden)) == subject, hidden, 0.0) <= most)
    sides = tf.cast(tf.shape(pixels)[:2], tf.float32)
    rows, columns = (
        (rectangle[axis] <= place) & (place < rectangle[axis + 2])
        for axis, place in enumerate((tf.range(sides[axis]) + 0.5) / sides[axis] for axis in (0, 1))
    )
    painted = done & (rows[:, None] & columns[None, :])[..., None]
    return tf.where(painted, tf.cast(round(fill), tf.uint8), pixels), tf.where(done, hidden, 0.0)


def radians(chance: tf.Tensor, degrees: float) -> tf.Tensor:
    """Return an angle of up to so many degrees either way."""
    return (2.0 * chance - 1.0) * (degrees * pi / 180.0)
