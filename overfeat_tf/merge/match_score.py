"""The match score of two boxes, and the box that they merge into (4.3 e, g).

The paper's match score is "the sum of the distance between centers of the two bounding boxes and the intersection
area". A larger intersection must make a better match, so it enters with a minus sign; and both terms are measured by
the mean A of the two boxes' areas, so that one threshold means the same at every size and scale:

    match_score(a, b) = |centre(a) - centre(b)| / sqrt(A) + 1 - intersection(a, b) / A

It is 0 for equal boxes, and at least 1 for boxes that share nothing.

box_merge averages the two boxes' edges: "weighted" by how many predictions each stands for, so that the order of
merging matters less, or "plain".
"""

import tensorflow as tf

from overfeat_tf import boxes as box_ops

FAR = float("inf")
# A row holds what scores and merges need of a box: its edges, its centre, half its area, and how many predictions it
# stands for. `NO_BOX` marks an empty place: it is infinitely far from every box.
NO_BOX = (FAR, FAR, -FAR, -FAR, FAR, FAR, 0.0, 0.0)
ROW = len(NO_BOX)


def to_rows(boxes: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
    """Describe boxes float32 [..., 4] that stand for counts float32 [...] predictions: rows [..., ROW].

    A row with count 0 is `NO_BOX`.
    """
    halves = box_ops.area(boxes) / 2.0
    rows = tf.concat([boxes, box_ops.centre(boxes), tf.stack([halves, counts], axis=-1)], axis=-1)
    return tf.where(counts[..., None] > 0, rows, NO_BOX)


def match_scores(rows: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """Score how badly rows [G, k, ROW] match others [G, m, ROW] of their group: [G, k, m]; 0 where equal, no unit."""
    a = [each[..., None] for each in tf.unstack(rows, num=ROW, axis=-1)]
    b = [each[:, None] for each in tf.unstack(others, num=ROW, axis=-1)]
    area = a[6] + b[6]  # the mean of both
    height = tf.nn.relu(tf.minimum(a[2], b[2]) - tf.maximum(a[0], b[0]))
    width = tf.nn.relu(tf.minimum(a[3], b[3]) - tf.maximum(a[1], b[1]))
    squared = tf.math.squared_difference(a[4], b[4]) + tf.math.squared_difference(a[5], b[5])
    return tf.sqrt(squared / area) + (1.0 - height * width / area)


def box_merge(a: tf.Tensor, b: tf.Tensor, average: str) -> tf.Tensor:
    """Merge rows [..., ROW] of boxes with others; `NO_BOX` where b is `NO_BOX`."""
    counts = a[..., -1] + b[..., -1]
    share = b[..., -1:] / counts[..., None] if average == "weighted" else 0.5
    # Written so that equal boxes become themselves, to the last bit.
    merged = a[..., :4] + (b[..., :4] - a[..., :4]) * share
    return to_rows(merged, tf.where(b[..., -1] > 0, counts, 0.0))
