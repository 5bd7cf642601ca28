"""Resampling and colour changes of views: pure functions, of chances drawn elsewhere where they are random."""

import tensorflow as tf


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
    return tf.where(shows_image(frame, side), pixels, fill)


def shows_image(frame: tf.Tensor, side: int) -> tf.Tensor:
    """Return which pixels of a view show the image at `frame` and not what lies beyond it: bool [side, side, 1]."""
    centres = tf.range(side, dtype=tf.float32) + 0.5
    rows, columns = ((centres > frame[axis]) & (centres < frame[axis + 2]) for axis in (0, 1))
    return (rows[:, None] & columns[None, :])[..., None]


def jitter_colour(chances: tf.Tensor, pixels: tf.Tensor, strength: float) -> tf.Tensor:
    """Change brightness, contrast and each channel's gain by up to `strength` (0 = not at all); 0..255 in and out.

    `chances` is float32 [5], each in 0..1; at 0.5 nothing changes.
    """
    gains = 1.0 + strength * (2.0 * chances - 1.0)
    mean = tf.reduce_mean(pixels)
    changed = (pixels - mean) * gains[0] + mean * gains[1]
    return tf.clip_by_value(changed * gains[2:], 0.0, 255.0)
