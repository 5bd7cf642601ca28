"""What each window of a view should answer: its class, and the edges of its object's box (4.2, 5).

The paper gives one rule: the regressor learns from a window only if the object overlaps the window's field of view
by half or more. It does not say which windows count as an object's in detection training; here those do that show
it as inference will want to find it, near the middle and at a size that some scale of the pyramid gives, and the
windows that are nearly so are left out of the loss. So are those that show a crowd, COCO's box around many objects: it
is no object to learn, and no background.
"""

from dataclasses import dataclass
from typing import NamedTuple

import tensorflow as tf

from overfeat_tf import boxes as box_ops
from overfeat_tf import geometry
from overfeat_tf.presets import Preset
from training.limits import check_range

IGNORED = -1  # a window label: not in the loss
BACKGROUND = 0  # object classes follow from 1


@dataclass(frozen=True)
class Matching:
    """When a window shows an object, in window sides.

    Attributes:
        sizes: Least and greatest longer side of an object that a window is to find; a ratio of the pyramid's step
            squared shows each object at two scales.
        shift: Greatest distance of the object's centre from the window's, along either side.
        margin: Factor on both beyond which a window is background; between, it is ignored.
        visible: Least part of the object's area that the window shows for the regressor to learn from it (4.2).
    """

    sizes: tuple[float, float] = (0.42, 0.84)
    shift: float = 0.14
    margin: float = 1.5
    visible: float = 0.5

    def __post_init__(self) -> None:
        check_range("matching.sizes", self.sizes, 0 < self.sizes[0] < self.sizes[1], "two sides, the lesser first")
        check_range("matching.shift", self.shift, self.shift > 0, "more than 0")
        check_range("matching.margin", self.margin, self.margin >= 1, "1 or more")
        check_range("matching.visible", self.visible, 0 < self.visible <= 1, "more than 0, at most 1")


class WindowTargets(NamedTuple):
    """labels int32 [h, w]: IGNORED, BACKGROUND or class + 1; edges float32 [h, w, 4] in window sides; taught int32
    [h, w]: class + 1 of the object whose box the regressor learns there, 0 where it learns none."""

    labels: tf.Tensor
    edges: tf.Tensor
    taught: tf.Tensor


def window_origins(preset: Preset, side: int, fine: bool) -> tf.Tensor:
    """List the first pixels (y, x) of the windows over an input of `side` pixels: float32 [h, w, 2]."""
    steps = tf.range(geometry.window_count(preset, side, fine), dtype=tf.float32) * geometry.stride(preset, fine)
    return tf.stack(tf.meshgrid(steps, steps, indexing="ij"), axis=-1)


def assign(
    preset: Preset,
    matching: Matching,
    boxes: tf.Tensor,
    labels: tf.Tensor,
    crowd: tf.Tensor,
    frame: tf.Tensor,
    origins: tf.Tensor,
) -> WindowTargets:
    """Give every window its class and its object's edges.

    Args:
        preset: The network.
        matching: The rule.
        boxes: float32 [n, 4] yxyx in the view's pixels.
        labels: int32 [n], classes from 0.
        crowd: bool [n], which are crowds. A window shows one where they share `visible` of the smaller of the two.
        frame: float32 [4], the image's edges in the view's pixels: since no window reaches beyond the image, an
            object at its border counts as centred in the outermost window.
        origins: float32 [h, w, 2], from `window_origins`.
    """
    if_none = tf.constant([[-1e6, -1e6, -1e6 + 1, -1e6 + 1]])  # an object nowhere: keeps n = 0 ordinary
    boxes, labels = tf.concat([boxes, if_none], axis=0), tf.concat([labels, [0]], axis=0)
    single = tf.concat([~crowd, [True]], axis=0)
    window = float(preset.window)
    middles = origins[..., None, :] + window / 2.0
    lowest, highest = frame[:2] + window / 2.0, frame[2:] - window / 2.0
    reachable = tf.clip_by_value(box_ops.centre(boxes), lowest, tf.maximum(highest, lowest))
    shift = tf.reduce_max(tf.abs(middles - reachable), axis=-1) / window  # [h, w, n]
    size = tf.reduce_max(boxes[:, 2:] - boxes[:, :2], axis=-1) / window  # [n]
    windows = tf.concat([origins, origins + window], axis=-1)[..., None, :]
    shared = box_ops.intersection(windows, boxes)
    visible = tf.math.divide_no_nan(shared, box_ops.area(boxes))

    def within(factor: float) -> tf.Tensor:
        sized = (size >= matching.sizes[0] / factor) & (size <= matching.sizes[1] * factor)
        return single & sized & (shift <= matching.shift * factor) & (visible >= matching.visible)

    crowded = ~single & (shared >= matching.visible * tf.minimum(box_ops.area(boxes), window**2))
    shown, nearly = within(1.0), within(matching.margin)
    # Of several objects the window is the nearest's.
    owner = tf.argmin(tf.where(shown, shift, shift + 1e3), axis=-1, output_type=tf.int32)
    found = tf.where(tf.reduce_any(nearly | crowded, axis=-1), IGNORED, BACKGROUND)
    classes = tf.where(tf.reduce_any(shown, axis=-1), tf.gather(labels, owner) + 1, found)
    # Inference has no window beyond the image's edge (but for images smaller than one).
    last = tf.maximum(frame[2:], frame[:2] + window)
    inside = tf.reduce_all((origins > frame[:2] - 1.0) & (origins + window < last + 1.0), axis=-1)
    classes = tf.where(inside, classes, IGNORED)
    sized = (size >= matching.sizes[0] / matching.margin) & (size <= matching.sizes[1] * matching.margin)
    teachable = single & (visible >= matching.visible) & sized
    nearest = tf.argmin(tf.where(teachable, shift, shift + 1e3), axis=-1, output_type=tf.int32)
    # A window that is named after an object learns to place that one, though another may be nearer.
    pupil = tf.where(tf.reduce_any(shown, axis=-1), owner, nearest)
    edges = box_ops.to_window(tf.gather(boxes, pupil), origins, window)
    teaches = tf.reduce_any(teachable, axis=-1) & inside
    taught = tf.where(teaches, tf.gather(labels, pupil) + 1, 0)
    return WindowTargets(classes, tf.where(teaches[..., None], edges, 0.0), taught)
