"""Random views of an image: crop, rescale, mirror and colour in one resampling, boxes carried along.

A view is what training sees: a square of network pixels at a random scale. Everything here is a pure function of
its seed (stateless), so that a pipeline gives the same batches again after a restart.
"""

from typing import NamedTuple

import tensorflow as tf

from overfeat_tf import boxes as box_ops


class View(NamedTuple):
    """One view.

    Attributes:
        pixels: float32 [side, side, 3], 0..255; `fill` outside the image.
        boxes: float32 [n, 4] yxyx in view pixels, unclipped: objects may lie partly or wholly outside.
        frame: float32 [4], the image's own edges in view pixels.
    """

    pixels: tf.Tensor
    boxes: tf.Tensor
    frame: tf.Tensor


def resample(image: tf.Tensor, frame: tf.Tensor, side: int, fill: float) -> tf.Tensor:
    """Draw an image [H, W, 3] so that its edges fall on `frame` (yxyx, in view pixels) of a [side, side, 3] view.

    Antialiased, like the scan's own resizing, so that training and inference see the same pixels.
    """
    sides = tf.shape(image)[:2]
    scale = (frame[2:] - frame[:2]) / tf.cast(sides, tf.float32)
    # Only what the view sees, and what its filter reaches: resampling costs as much as its input is tall.
    reach = 2.0 * tf.maximum(1.0 / scale, 1.0)
    first = tf.clip_by_value(tf.cast(tf.floor(-frame[:2] / scale - reach), tf.int32), 0, sides - 1)
    last = tf.clip_by_value(tf.cast(tf.math.ceil((side - frame[:2]) / scale + reach), tf.int32), first + 1, sides)
    pixels = tf.raw_ops.ScaleAndTranslate(
        images=tf.cast(image[first[0] : last[0], first[1] : last[1]], tf.float32)[None],
        size=[side, side],
        scale=scale,
        translation=frame[:2] + tf.cast(first, tf.float32) * scale,
        kernel_type="triangle",
        antialias=True,
    )[0]
    centres = tf.range(side, dtype=tf.float32) + 0.5
    rows, columns = ((centres > frame[axis]) & (centres < frame[axis + 2]) for axis in (0, 1))
    return tf.where((rows[:, None] & columns[None, :])[..., None], pixels, fill)


def random_frame(
    seed: tf.Tensor, image_size: tf.Tensor, box: tf.Tensor, length: tf.Tensor, side: int, slack: float, stretch: float
) -> tf.Tensor:
    """Place an image so that `box` has a longer side of `length` and lies near the view's middle.

    Args:
        seed: int32 [2].
        image_size: float32 [2], height and width in pixels.
        box: float32 [4], yxyx in image pixels: the object to show (any part of the image will do).
        length: float32 scalar, the box's longer side in view pixels.
        side: Side of the view in pixels.
        slack: The box's centre falls within this many pixels of the view's.
        stretch: Most that the aspect is changed, as a factor less 1.

    Returns:
        float32 [4], the image's edges in view pixels. The view stays inside the image where the image is large
        enough, else the image inside the view.
    """
    shift_seed, stretch_seed = tf.unstack(tf.random.split(seed, 2))
    factor = length / tf.maximum(tf.reduce_max(box[2:] - box[:2]), 1e-3)
    squeeze = tf.exp(tf.random.stateless_uniform([2], stretch_seed, -0.5, 0.5) * tf.math.log1p(stretch))
    scale = factor * squeeze
    extent = image_size * scale
    middle = box_ops.centre(box) * scale
    first = side / 2.0 - middle + tf.random.stateless_uniform([2], shift_seed, -slack, slack)
    spare = side - extent
    first = tf.clip_by_value(first, tf.minimum(spare, 0.0), tf.maximum(spare, 0.0))
    return tf.concat([first, first + extent], axis=0)


def show(
    seed: tf.Tensor, image: tf.Tensor, boxes: tf.Tensor, frame: tf.Tensor, side: int, fill: float, colour: float
) -> View:
    """Draw the view of an image placed at `frame`, its colours changed.

    Args:
        seed: int32 [2].
        image, frame, side, fill: As for `resample`.
        boxes: float32 [n, 4] yxyx in image pixels.
        colour: As for `jitter_colour`.
    """
    scale = (frame[2:] - frame[:2]) / tf.cast(tf.shape(image)[:2], tf.float32)
    placed = boxes * tf.concat([scale, scale], axis=0) + tf.concat([frame[:2], frame[:2]], axis=0)
    pixels = jitter_colour(seed, resample(image, frame, side, fill), colour)
    return View(tf.ensure_shape(pixels, [side, side, 3]), placed, frame)


def jitter_colour(seed: tf.Tensor, pixels: tf.Tensor, strength: float) -> tf.Tensor:
    """Change brightness, contrast and each channel's gain by up to `strength` (0 = not at all); 0..255 in and out."""
    gains = 1.0 + strength * tf.random.stateless_uniform([5], seed, -1.0, 1.0)
    mean = tf.reduce_mean(pixels)
    changed = (pixels - mean) * gains[0] + mean * gains[1]
    return tf.clip_by_value(changed * gains[2:], 0.0, 255.0)


def random_mirror(seed: tf.Tensor, view: View) -> View:
    """Mirror a view left to right half of the time."""
    side = tf.cast(tf.shape(view.pixels)[1], tf.float32)
    mirrored = View(view.pixels[:, ::-1], box_ops.flip(view.boxes, side), box_ops.flip(view.frame, side))
    heads = tf.random.stateless_uniform([], seed) < 0.5
    return View(*(tf.where(heads, a, b) for a, b in zip(mirrored, view, strict=True)))
