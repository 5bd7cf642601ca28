"""Which windows learn which object, and its box (4.2, 5).

An object belongs to the scales of the pyramid that show it at a size within `Matching.sizes`; where none does, to the
scale that comes nearest. So every object belongs to at least one scale, however large or small it is. For a window of
a scale the rule is:

- It is the object's (positive) if the object belongs to the scale and the window is centred on it, or as nearly as
  windows within the canvas can be.
- It is ignored if it shows the object well, but less well than others: it sees at least half of the object (4.2), its
  centre lies within half the object's longer side of the object's, and the object is not much smaller than those to be
  found. So a window that shows an object well is never background.
- It is ignored if it shows a crowd, COCO's box around many objects.
- Otherwise it is background.

The regressor learns an object's box at every window that sees at least half of it, whatever the object's size (4.2).
"""

from dataclasses import dataclass
from typing import NamedTuple

import tensorflow as tf

from overfeat_tf import boxes as box_ops
from overfeat_tf.arguments import check_range
from overfeat_tf.network.presets import Preset

IGNORED = -1  # a window label: not in the loss
BACKGROUND = 0  # object classes follow from 1
NEVER = 1e3  # window sides: farther than any window is from an object


@dataclass(frozen=True)
class Matching:
    """When a window shows an object. Lengths are in window sides.

    Attributes:
        sizes: Least and greatest longer side of an object that a window is to find. With a ratio of the pyramid's step
            squared, each object belongs to two scales.
        shift: Greatest distance between the centres of a positive window and its object, along either axis.
        margin: Factor on `sizes[0]` below which windows that see an object of another scale are background; between,
            they are ignored.
        visible: Least share of an object's area that a window sees (4.2: half).
        smallest: Least longer side of an object that is learnt, at the scale that it belongs to. Windows that show a
            smaller one are ignored.
        box_sizes: Least and greatest longer side of an object whose box is learnt; None learns all (4.2).
    """

    sizes: tuple[float, float] = (0.42, 0.84)
    shift: float = 0.14
    margin: float = 1.5
    visible: float = 0.5
    smallest: float = 0.1
    box_sizes: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        two_sides = "two sides, the lesser first"
        check_range("matching.sizes", self.sizes, 0 < self.sizes[0] < self.sizes[1], two_sides)
        check_range("matching.shift", self.shift, self.shift > 0, "more than 0")
        check_range("matching.margin", self.margin, self.margin >= 1, "1 or more")
        check_range("matching.visible", self.visible, 0 < self.visible <= 1, "more than 0, at most 1")
        check_range("matching.smallest", self.smallest, 0 <= self.smallest <= self.sizes[0], "from 0 to sizes[0]")
        rising = self.box_sizes is None or 0 <= self.box_sizes[0] < self.box_sizes[1]
        check_range("matching.box_sizes", self.box_sizes, rising, f"None, or {two_sides}")


class WindowTargets(NamedTuple):
    """What the windows [h, w] of a view learn.

    Attributes:
        labels: int32 [h, w]: IGNORED, BACKGROUND or class + 1.
        edges: float32 [h, w, 4], the edges of the object whose box is learnt, yxyx in window sides from the window's
            top left; 0 where none is.
        box_classes: int32 [h, w], that object's class + 1; 0 where no box is learnt.
    """

    labels: tf.Tensor
    edges: tf.Tensor
    box_classes: tf.Tensor


def window_origins(preset: Preset, side: int, fine: bool) -> tf.Tensor:
    """Return the first pixels (y, x) of the windows over an input of `side` pixels: float32 [h, w, 2]."""
    steps = tf.range(preset.window_count(side, fine), dtype=tf.float32) * preset.stride(fine)
    return tf.stack(tf.meshgrid(steps, steps, indexing="ij"), axis=-1)


def home_scales(preset: Preset, matching: Matching, boxes: tf.Tensor) -> tf.Tensor:
    """Return the scales that objects belong to, bool [K, n], by their boxes float32 [K, n, 4] yxyx in each's pixels."""
    longer = tf.reduce_max(boxes[..., 2:] - boxes[..., :2], axis=-1) / preset.window
    least, most = matching.sizes
    beyond = tf.maximum(tf.maximum(longer / most, least / tf.maximum(longer, 1e-6)), 1.0)
    return beyond <= tf.reduce_min(beyond, axis=0) * (1 + 1e-6)


def centred_shift(preset: Preset, matching: Matching) -> float:
    """Return the greatest shift of a positive window, in pixels: at least one window on the grid is within it."""
    return max(matching.shift * preset.window, preset.fine_stride / 2)


def reachable_centres(preset: Preset, boxes: tf.Tensor, canvas: tf.Tensor) -> tf.Tensor:
    """Return the points [n, 2] nearest to the centres of boxes [n, 4] on which windows within a canvas are centred."""
    half = preset.window / 2.0
    return tf.clip_by_value(box_ops.centre(boxes), half, tf.cast(canvas, tf.float32) - half)


def assign(
    preset: Preset,
    matching: Matching,
    boxes: tf.Tensor,
    labels: tf.Tensor,
    crowd: tf.Tensor,
    home: tf.Tensor,
    canvas: tf.Tensor,
    origins: tf.Tensor,
) -> WindowTargets:
    """Assign a label and a box to every window of one scale, by the rule above.

    Args:
        preset, matching: The network and the rule.
        boxes: float32 [n, 4] yxyx in the pixels of the scale's canvas.
        labels: int32 [n], classes from 0.
        crowd: bool [n], boxes around many objects.
        home: bool [n], the objects that belong to this scale (`home_scales`).
        canvas: int32 [2], height and width of the scale's canvas. Windows that reach beyond are ignored: the scan has
            none there.
        origins: float32 [h, w, 2], the windows' first pixels on the canvas.
    """
    nothing = tf.constant([[-1e6, -1e6, -1e6 + 1, -1e6 + 1]])  # an object nowhere: n = 0 needs no case of its own
    boxes, labels = tf.concat([boxes, nothing], axis=0), tf.concat([labels, [0]], axis=0)
    single, home = tf.concat([~crowd, [True]], axis=0), tf.concat([home, [False]], axis=0)
    window = float(preset.window)
    sides = boxes[:, 2:] - boxes[:, :2]
    longer, area = tf.reduce_max(sides, axis=-1) / window, box_ops.area(boxes)
    # The largest share of each object that a window can see: 1 unless the object is larger than the window.
    most_seen = tf.math.divide_no_nan(tf.reduce_prod(tf.minimum(sides, window), axis=-1), area)

    windows = tf.concat([origins, origins + window], axis=-1)[..., None, :]
    shared = box_ops.intersection(windows, boxes)  # [h, w, n]
    seen = tf.math.divide_no_nan(shared, area)
    apart = origins[..., None, :] + window / 2.0 - reachable_centres(preset, boxes, canvas)
    shift = tf.reduce_max(tf.abs(apart), axis=-1)
    enough = matching.visible * tf.where(home, most_seen, 1.0)

    learnt = single & home & (longer >= matching.smallest)
    positive = learnt & (shift <= centred_shift(preset, matching) + 1e-3) & (seen >= enough * (1 - 1e-5))
    on_object = shift <= tf.maximum(longer * window / 2.0, centred_shift(preset, matching)) + 1e-3
    good = single & on_object & (seen >= enough) & (home | (longer >= matching.sizes[0] / matching.margin))
    crowded = ~single & (shared >= matching.visible * tf.minimum(area, window**2))

    nearest = _nearest(shift, positive)
    found = tf.where(tf.reduce_any(good | crowded, axis=-1), IGNORED, BACKGROUND)
    window_labels = tf.where(tf.reduce_any(positive, axis=-1), tf.gather(labels, nearest) + 1, found)

    # A positive window learns the box of its own object; others prefer an object of their scale.
    placed = single & (seen >= matching.visible)
    if matching.box_sizes is not None:
        placed &= (longer >= matching.box_sizes[0]) & (longer <= matching.box_sizes[1])
    placed |= positive
    preferred = tf.where(positive, 0.0, tf.where(home, NEVER, 2 * NEVER)) * window + shift
    boxed = _nearest(preferred, placed)
    edges = box_ops.to_window(tf.gather(boxes, boxed), origins, window)
    box_classes = tf.where(tf.reduce_any(placed, axis=-1), tf.gather(labels, boxed) + 1, 0)

    last = tf.cast(canvas, tf.float32)
    inside = tf.reduce_all((origins > -0.5) & (origins + window < last + 0.5), axis=-1)
    box_classes = tf.where(inside, box_classes, 0)
    edges = tf.where((box_classes > 0)[..., None], edges, 0.0)
    return WindowTargets(tf.where(inside, window_labels, IGNORED), edges, box_classes)


def pack_edges(edges: tf.Tensor, box_classes: tf.Tensor) -> tf.Tensor:
    """Join edges [..., 4] and their objects' classes + 1, int32 [...], for `BoxLoss`: float32 [..., 5]."""
    return tf.concat([edges, tf.cast(box_classes, tf.float32)[..., None]], axis=-1)


def _nearest(distance: tf.Tensor, among: tf.Tensor) -> tf.Tensor:
    """Return the index of the least distance [..., n] among those allowed, bool [..., n]."""
    return tf.argmin(tf.where(among, distance, float("inf")), axis=-1, output_type=tf.int32)
