"""Accumulation: boxes are merged, and their scores added, rather than suppressed (4.3 d-g).

`match_score` has the score and the merged box of a pair, `greedy` the order of the pairs. Here predictions become
groups of boxes that may merge, and merged boxes get the sum of the scores they came from.
"""

from typing import NamedTuple

import tensorflow as tf

from overfeat_tf import boxes as box_ops
from overfeat_tf.merge.greedy import merge_groups
from overfeat_tf.merge.match_score import NO_BOX, to_rows


class Merged(NamedTuple):
    """Merged boxes [m, 4] by falling accumulated score [m], with their classes int32 [m] and how many predictions
    each stands for float32 [m]."""

    boxes: tf.Tensor
    scores: tf.Tensor
    classes: tf.Tensor
    counts: tf.Tensor


@tf.function(autograph=False, reduce_retracing=True)  # one trace for all numbers of boxes
def merge(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    classes: tf.Tensor,
    threshold: float,
    average: str = "weighted",
    across_classes: bool = False,
) -> Merged:
    """Merge boxes greedily: while the smallest match score does not exceed the threshold, merge that pair.

    The result does not depend on the order of the input. Boxes that are not finite or have no area are left out.
    Classes run side by side, and so do the images of a batch whose classes have numbers of their own. The time grows
    with the square of a class's boxes at most; classes that have the same boxes, as all have where one regressor
    serves them (SCR), are merged once.

    Args:
        boxes: float32 [n, 4] yxyx, in any unit in which both axes measure the same (pixels).
        scores: float32 [n], at least 0.
        classes: int32 [n].
        threshold: The t of (f), at least 0.
        average: Of `options.AVERAGES`.
        across_classes: Let boxes of different classes merge too: their scores are added class by class, and the
            largest tells a merged box's class and score. Otherwise boxes merge within their classes.
    """
    boxes, scores, classes = _in_order(boxes, scores, classes, across_classes)
    group = tf.zeros_like(classes) if across_classes else _numbered(classes[:, None])
    # Equal boxes have the smallest match score there is, so they are one before anything else happens.
    box = _numbered(tf.concat([tf.cast(group, tf.float32)[:, None], boxes], axis=1))
    first = tf.math.segment_min(tf.range(tf.size(box)), box)
    rows = to_rows(tf.gather(boxes, first), tf.math.segment_sum(tf.ones_like(scores), box))
    rows, root = _merge_each(rows, tf.gather(group, first), threshold, average)
    valid = rows[:, -1] > 0
    rows = tf.boolean_mask(rows, valid)
    part_of = tf.gather(tf.cumsum(tf.cast(valid, tf.int32)) - 1, tf.gather(root, box))
    sums, labels = _accumulate(scores, classes, part_of, tf.shape(rows)[0])
    order = tf.argsort(sums, direction="DESCENDING", stable=True)
    return Merged(*(tf.gather(each, order) for each in (rows[:, :4], sums, labels, rows[:, -1])))


def _in_order(boxes: tf.Tensor, scores: tf.Tensor, classes: tf.Tensor, across_classes: bool) -> tuple[tf.Tensor, ...]:
    """Leave out what is no box, and sort by class, edges and score, so that ties fall the same way in any order.

    Where classes do not matter they come after the edges: equal boxes follow each other.
    """
    # Of finite edges, areas and centres are still too large for a float32 where the edges are absurd.
    areas, measures = box_ops.area(boxes), tf.concat([boxes, box_ops.centre(boxes), scores[:, None]], axis=1)
    good = tf.reduce_all(tf.math.is_finite(measures), axis=1) & tf.math.is_finite(areas) & (areas > 0)
    boxes, scores, classes = (tf.boolean_mask(values, good) for values in (boxes, scores, classes))
    edges = tf.unstack(boxes, num=4, axis=-1)
    keys = [*edges, classes, scores] if across_classes else [classes, *edges, scores]
    order = tf.range(tf.shape(scores)[0])
    for key in reversed(keys):
        order = tf.gather(order, tf.argsort(tf.gather(key, order), stable=True))
    return tf.gather(boxes, order), tf.gather(scores, order), tf.gather(classes, order)


def _numbered(lines: tf.Tensor) -> tf.Tensor:
    """Return the number of each line's run of equal lines [n, d], from 0: int32 [n]."""
    new = tf.reduce_any(lines[1:] != lines[:-1], axis=1)
    return tf.cumsum(tf.concat([tf.zeros_like(lines[:1, 0], tf.int32), tf.cast(new, tf.int32)], axis=0))


def _merge_each(rows: tf.Tensor, group: tf.Tensor, threshold: float, average: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Merge rows [n, ROW] within their groups, numbered [n] and rising.

    Groups of like size run side by side, so that a single large one does not make all others as costly.

    Returns:
        The merged rows, each at the place of one that it comes from, NO_BOX elsewhere; and that place for each row.
    """
    sizes = tf.math.segment_sum(tf.ones_like(group), group)
    starts = tf.cumsum(sizes, exclusive=True)
    by_size = tf.argsort(sizes, direction="DESCENDING")
    falling = tf.gather(sizes, by_size)

    def run(done: tf.Tensor, merged: tf.Tensor, root: tf.Tensor):
        largest = falling[done]
        stop = tf.math.count_nonzero(falling * 2 >= largest, dtype=tf.int32)
        members = by_size[done:stop]
        slots, first = tf.range(largest), tf.gather(starts, members)[:, None]
        valid = slots < tf.gather(sizes, members)[:, None]
        boxes = tf.where(valid[..., None], tf.gather(rows, tf.where(valid, first + slots, 0)), NO_BOX)
        # Classes with the same boxes, as those of one regressor are (SCR), are merged once.
        unlike, which = tf.raw_ops.UniqueV2(x=boxes, axis=[0])
        left, roots = (tf.gather(each, which) for each in merge_groups(unlike, threshold, average))
        places = tf.boolean_mask(first + slots, valid)[:, None]
        merged = tf.tensor_scatter_nd_update(merged, places, tf.boolean_mask(left, valid))
        root = tf.tensor_scatter_nd_update(root, places, tf.boolean_mask(first + roots, valid))
        return stop, merged, root

    state = [tf.constant(0), rows, tf.range(tf.shape(rows)[0])]
    return tf.while_loop(lambda done, *_: done < tf.size(sizes), run, state, parallel_iterations=1)[1:]


def _accumulate(scores: tf.Tensor, classes: tf.Tensor, part_of: tf.Tensor, count: tf.Tensor) -> tuple:
    """Add scores [n] by class for each of `count` boxes that they are part of; give the largest sums and classes."""
    kinds, kind = tf.unique(classes)
    cell, cells = part_of * tf.size(kinds) + kind, count * tf.size(kinds)
    sums = tf.math.unsorted_segment_sum(scores, cell, cells)
    voted = tf.math.unsorted_segment_sum(tf.ones_like(scores), cell, cells) > 0
    table = tf.reshape(tf.where(voted, sums, -1.0), tf.stack([count, tf.size(kinds)]))
    if_none = tf.pad(table, [[0, 0], [0, 1]], constant_values=-1.0)  # argmax needs a column
    best = tf.argmax(if_none, axis=1, output_type=tf.int32)
    return tf.reduce_max(if_none, axis=1), tf.gather(tf.pad(kinds, [[0, 1]]), best)
