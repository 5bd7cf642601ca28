"""Boxes [..., 4] as (ymin, xmin, ymax, xmax): pure functions, in whatever unit they are given."""

import tensorflow as tf

BOX_FORMS = ("edges", "center_size")  # what the regressor's four numbers are: `encode`
LOG_LIMIT = 5.0  # of a side's logarithm, 1/148 to 148 windows: wider than any object, and far from float32's end


def area(boxes: tf.Tensor) -> tf.Tensor:
    """Return areas [...]; 0 where an edge is beyond its opposite."""
    sides = tf.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]


def centre(boxes: tf.Tensor) -> tf.Tensor:
    """Return centres [..., 2] as (y, x)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2.0


def clip(boxes: tf.Tensor, height: tf.Tensor | float = 1.0, width: tf.Tensor | float = 1.0) -> tf.Tensor:
    """Clip boxes to an image of height x width (1 x 1 for normalised boxes)."""
    limits = tf.cast(tf.stack([height, width, height, width]), boxes.dtype)
    return tf.clip_by_value(boxes, tf.zeros_like(limits), limits)


def intersection(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Return the areas shared by a [..., 4] and b [..., 4], broadcast against each other."""
    shared = tf.concat([tf.maximum(a[..., :2], b[..., :2]), tf.minimum(a[..., 2:], b[..., 2:])], axis=-1)
    return area(shared)


def iou(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Return intersection over union of a [..., 4] and b [..., 4], broadcast; 0 where the union has no area."""
    shared = intersection(a, b)
    return tf.math.divide_no_nan(shared, area(a) + area(b) - shared)


def giou(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Return IoU less the part of the enclosing box that neither covers: in -1..1, decreasing as they move apart.

    Generalised IoU (Rezatofighi et al. 2019) of a [..., 4] and b [..., 4], broadcast.
    """
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    hull = area(tf.concat([tf.minimum(a[..., :2], b[..., :2]), tf.maximum(a[..., 2:], b[..., 2:])], axis=-1))
    return tf.math.divide_no_nan(shared, union) - tf.math.divide_no_nan(hull - union, hull)


def flip(boxes: tf.Tensor, width: tf.Tensor | float = 1.0) -> tf.Tensor:
    """Mirror boxes left to right in an image of that width."""
    ymin, xmin, ymax, xmax = tf.unstack(boxes, axis=-1)
    return tf.stack([ymin, width - xmax, ymax, width - xmin], axis=-1)


def to_window(boxes: tf.Tensor, origins: tf.Tensor, window: float) -> tf.Tensor:
    """Shift pixel boxes [..., 4] into the frame of windows with first pixels [..., 2], in window sides (4.2)."""
    return (boxes - tf.concat([origins, origins], axis=-1)) / window


def from_window(edges: tf.Tensor, origins: tf.Tensor, window: float) -> tf.Tensor:
    """Undo `to_window`: edges in window sides to pixel boxes."""
    return edges * window + tf.concat([origins, origins], axis=-1)


def encode(edges: tf.Tensor, form: str) -> tf.Tensor:
    """Encode edges [..., 4] in window sides as the four numbers [..., 4] of a regressor of that form.

    "edges" are the edges themselves (4.2). "center_size" is the centre (y, x) from the window's own, and the logarithms
    of height and width: shifting or scaling an object changes two numbers rather than four (6, iii). Sides beyond
    `LOG_LIMIT` are encoded as at it.
    """
    if form == "edges":
        return edges
    least, most = tf.exp(-LOG_LIMIT), tf.exp(LOG_LIMIT)
    sides = tf.clip_by_value(edges[..., 2:] - edges[..., :2], least, most)
    return tf.concat([centre(edges) - 0.5, tf.math.log(sides)], axis=-1)


def decode(values: tf.Tensor, form: str) -> tf.Tensor:
    """Undo `encode`: the regressor's four numbers [..., 4] to edges in window sides."""
    if form == "edges":
        return values
    middle, half = values[..., :2] + 0.5, tf.exp(tf.clip_by_value(values[..., 2:], -LOG_LIMIT, LOG_LIMIT)) / 2.0
    return tf.concat([middle - half, middle + half], axis=-1)
