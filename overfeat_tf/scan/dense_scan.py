"""The dense multi-scale scan: an image -> class scores and boxes of every window (3.3, 4), and their vote."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import tensorflow as tf

from overfeat_tf import boxes as box_ops
from overfeat_tf.compute.dense import find_windows, head_maps, run_heads
from overfeat_tf.compute.execution import execution_of
from overfeat_tf.network.convnet import Network
from overfeat_tf.options import InferenceOptions
from overfeat_tf.scan.pyramid import Views, draw_views


class ScaleScan(NamedTuple):
    """The outputs of every window of one view (a scale, its mirror image, a crop).

    Attributes:
        logits: float32 [h, w, classes], before softmax.
        boxes: float32 [h, w, R, 4], yxyx normalised in the image, unclipped; R is 1, or the number of object classes
            where the regressor has a box for each. None without the regressor.
        windows: float32 [h, w, 4], the place of each window, likewise; in a mirror image they run from right to left.
    """

    logits: tf.Tensor
    boxes: tf.Tensor | None
    windows: tf.Tensor


def scan(network: Network, image: tf.Tensor, options: InferenceOptions, with_boxes: bool = True) -> list[ScaleScan]:
    """Run the network over an image at every scale, flip and window.

    Args:
        network: The network.
        image: uint8 or float32 [H, W, 3], 0..255, at least one pixel.
        options: Which views, scales, flips and stride.
        with_boxes: Also run the regressor.

    Returns:
        One `ScaleScan` for each scale and, with flips, one more for its mirror image, in that order; or one for each
        crop.
    """
    groups = draw_views(network.preset, image, options)
    outputs = run_views(network, [views.pixels for views in groups], options, with_boxes)
    return place_windows(network, outputs, groups, options)


def run_views(
    network: Network, pixels: Sequence[tf.Tensor], options: InferenceOptions, with_boxes: bool = True
) -> list[list[tf.Tensor]]:
    """Run the network over every window of views float32 [V, H, W, 3] of several sizes, of one image or of more.

    Returns:
        For the classifier, and with boxes the regressor, its values of each size's views: float32 [V, h, w, D].
    """
    maps = head_maps(network, pixels, options.arithmetic)
    windows = find_windows(network.preset, maps, options.fine)
    heads = [network.classifier, network.regressor] if with_boxes else [network.classifier]
    execution = execution_of(network, options.arithmetic)
    return [windows.split(answers) for answers in run_heads(heads, windows, execution=execution)]


def place_windows(
    network: Network, outputs: Sequence[Sequence[tf.Tensor]], groups: Sequence[Views], options: InferenceOptions
) -> list[ScaleScan]:
    """Place what `run_views` gives for one image's views in the image."""
    scans, preset = [], network.preset
    for views, logits, *values in zip(groups, *outputs, strict=True):
        channels = values[0].shape[-1] if values else 0
        step = preset.stride(options.fine)
        place = _placing(preset.window, step, network.box_form, channels, views.mirrored)
        seen, boxes = place(tf.shape(logits)[1:3], views.origins, views.size, values)
        scans += [ScaleScan(*one) for one in zip(tf.unstack(logits, len(seen)), boxes, seen, strict=True)]
    return scans


@cache
def _placing(window: int, step: int, form: str, channels: int, mirrored: tuple[bool, ...]) -> Callable:
    """Return the tf.function that places windows, and with the regressor's values boxes, in the image.

    Of a map int32 [2] of windows in views at origins float32 [V, 2] of an image resized to int32 [2]. All scales and
    signatures share it: tracing the boxes of each would make a third of a graph.

    Args:
        window, step: The windows' side, and the pixels from one to the next.
        form, channels: Of the regressor's values, [V, h, w, channels]; no channels where there are no values.
        mirrored: As of `Views`.
    """

    def in_image(edges: tf.Tensor, corners: tf.Tensor, size: tf.Tensor) -> list[tf.Tensor]:
        """Convert edges in window sides to normalised boxes in the image, one tensor a view; undo the mirroring."""
        sides = tf.cast(tf.concat([size, size], axis=0), tf.float32)
        boxes = box_ops.from_window(edges, corners[:, :, :, None], float(window)) / sides
        return [box_ops.flip(boxes[i]) if turned else boxes[i] for i, turned in enumerate(mirrored)]

    def place(windows: tf.Tensor, origins: tf.Tensor, size: tf.Tensor, values: list[tf.Tensor]) -> tuple:
        rows, columns = (tf.cast(tf.range(windows[axis]) * step, tf.float32) for axis in (0, 1))
        corners = origins[:, None, None] + tf.stack(tf.meshgrid(rows, columns, indexing="ij"), axis=-1)
        window_boxes = in_image(tf.constant([0.0, 0.0, 1.0, 1.0]), corners, size)
        boxes: list = [None] * len(mirrored)
        if values:
            each = tf.reshape(values[0], tf.concat([tf.shape(values[0])[:3], [channels // 4, 4]], axis=0))
            each = tf.ensure_shape(each, [None, None, None, channels // 4, 4])
            boxes = in_image(box_ops.decode(each, form), corners, size)
        return [field[:, :, 0] for field in window_boxes], boxes

    return tf.function(place, autograph=False, reduce_retracing=True)


def vote(scans: list[ScaleScan], background: bool) -> tf.Tensor:
    """Vote over all windows: (i) each class's maximum over a scale's windows, (ii) the mean over scales and flips.

    The votes are softmax scores: scores before softmax are only defined up to a constant at each window, so their
    maximum over windows would mean nothing.

    Args:
        scans: What `scan` gives.
        background: Whether class 0 is the background, which has no vote.

    Returns:
        float32 [classes], each in 0..1; they need not sum to 1.
    """
    maxima = [tf.reduce_max(tf.nn.softmax(scan.logits), axis=[0, 1]) for scan in scans]
    votes = tf.reduce_mean(tf.stack(maxima), axis=0)
    return votes[1:] if background else votes
