"""The dense multi-scale scan: image -> pyramid of scales -> class scores and boxes of every window (3.3, 4)."""

from typing import NamedTuple

import tensorflow as tf

from overfeat_tf import boxes as box_ops
from overfeat_tf import geometry
from overfeat_tf.network import Network
from overfeat_tf.options import InferenceOptions
from overfeat_tf.presets import Preset

# A strip longer than this is squeezed to it: a scale's cost stays within a few times that of a square image.
MAX_ASPECT = 64.0


class ScaleScan(NamedTuple):
    """What every window of one scale (and flip) answers.

    Attributes:
        logits: float32 [h, w, classes], before softmax.
        boxes: float32 [h, w, 4], yxyx normalised in the image, unclipped; None where not asked for.
    """

    logits: tf.Tensor
    boxes: tf.Tensor | None


def fit_scale(preset: Preset, scale: tuple[int, int], image_size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Fit an image to a scale: about the scale's area, the image's aspect, sides that suit the stride (Table 5).

    The area rather than a side is kept, so that a scale costs the same whatever the aspect. A side is stretched by
    at most half a coarse stride; where it would still be shorter than the smallest input it is padded instead, so
    that a strip keeps its shape.

    Args:
        preset: The network.
        scale: (height, width) in pixels, as in Table 5.
        image_size: int32 [2], height and width in pixels, at least 1.

    Returns:
        int32 [2] and int32 [2]: the size to resize to, and that to pad to below and right.
    """
    sides = tf.cast(image_size, tf.float64)  # float32 would round some halves the other way
    aspect = tf.clip_by_value(sides[0] / sides[1], 1 / MAX_ASPECT, MAX_ASPECT)
    wanted = tf.sqrt(float(scale[0] * scale[1]) * tf.stack([aspect, 1 / aspect]))
    steps = tf.maximum(tf.round((wanted - preset.smallest_input) / preset.coarse_stride), 0)
    canvas = preset.smallest_input + preset.coarse_stride * tf.cast(steps, tf.int32)
    stretched = wanted >= tf.cast(canvas, tf.float64) - preset.coarse_stride / 2
    natural = tf.maximum(tf.cast(tf.round(wanted), tf.int32), 1)
    return tf.where(stretched, canvas, natural), canvas


def draw_scale(preset: Preset, scale: tuple[int, int], image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Resize an image [H, W, 3] to a scale, antialiased, and pad it with the mean pixel.

    Returns:
        The canvas float32 [h, w, 3], and the int32 [2] size of the image on it.
    """
    resized, canvas = fit_scale(preset, scale, tf.shape(image)[:2])
    pixels = tf.image.resize(tf.cast(image, tf.float32), resized, antialias=True)
    spare = canvas - resized
    return tf.pad(pixels, [[0, spare[0]], [0, spare[1]], [0, 0]], constant_values=preset.mean), resized


def scan(network: Network, image: tf.Tensor, options: InferenceOptions, with_boxes: bool = True) -> list[ScaleScan]:
    """Run the network over an image at every scale, flip and window.

    Args:
        network: The network.
        image: uint8 or float32 [H, W, 3], 0..255, at least one pixel.
        options: Which scales, flips and stride.
        with_boxes: Also run the regressor.

    Returns:
        One `ScaleScan` for each scale and, with flips, one more for its mirror image, in that order.
    """
    scans = []
    for scale in options.scale_sizes(network.preset):
        canvas, content = draw_scale(network.preset, scale, image)
        views = [canvas]
        if options.flips:
            # Mirrored within its own content, so that the padding stays at the right.
            views.append(tf.concat([tf.reverse(canvas[:, : content[1]], [1]), canvas[:, content[1] :]], axis=1))
        logits, edges = network.dense(tf.stack(views), options.fine, with_boxes)
        boxes = _image_boxes(network.preset, edges, content, options) if with_boxes else [None] * len(views)
        scans += [ScaleScan(logits[i], boxes[i]) for i in range(len(views))]
    return scans


def _image_boxes(preset: Preset, edges: tf.Tensor, content: tf.Tensor, options: InferenceOptions) -> list[tf.Tensor]:
    """Bring every window's box edges into the image's frame, normalised; mirrored views are undone."""
    step = geometry.stride(preset, options.fine)
    rows, columns = (tf.cast(tf.range(tf.shape(edges)[axis]) * step, tf.float32) for axis in (1, 2))
    origins = tf.stack(tf.meshgrid(rows, columns, indexing="ij"), axis=-1)
    size = tf.cast(content, tf.float32)
    boxes = box_ops.from_window(edges, origins, float(preset.window)) / tf.concat([size, size], axis=0)
    return [boxes[0], box_ops.flip(boxes[1])] if options.flips else [boxes[0]]
