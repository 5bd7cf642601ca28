"""Accumulation of boxes by greedy merging (4.3 d-g), in the graph.

The paper's match score is "the sum of the distance between centers of the two bounding boxes and the intersection
area". A larger intersection must make a better match, so it enters with a minus sign, and both terms are
normalised, so that one threshold serves every size and scale:

    match_score(a, b) = |centre(a) - centre(b)| / sqrt(mean of the two areas) + 1 - IoU(a, b)

It is 0 for equal boxes, and at least 1 for boxes that share nothing. Boxes of different classes never match.
box_merge is the average of the edges weighted by how many predictions each box stands for, so that the order of
merging matters less; a merged box's score is the sum of the scores it came from.
"""

from typing import NamedTuple

import tensorflow as tf

from overfeat_tf import boxes as box_ops

NEVER = float("inf")


class Merged(NamedTuple):
    """Merged boxes [m, 4] by falling accumulated score [m], with their classes int32 [m] and how many predictions
    each stands for float32 [m]."""

    boxes: tf.Tensor
    scores: tf.Tensor
    classes: tf.Tensor
    counts: tf.Tensor


class _State(NamedTuple):
    boxes: tf.Tensor
    scores: tf.Tensor
    counts: tf.Tensor
    alive: tf.Tensor
    nearest: tf.Tensor  # smallest match score of each row with any other box
    partner: tf.Tensor  # and with which; the first of equals


def match_score(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Score how badly boxes [..., 4] match, broadcast: 0 where equal, no unit."""
    distance = tf.norm(box_ops.centre(a) - box_ops.centre(b), axis=-1)
    size = tf.sqrt((box_ops.area(a) + box_ops.area(b)) / 2.0)
    return tf.math.divide_no_nan(distance, size) + 1.0 - box_ops.iou(a, b)


@tf.function(autograph=False, reduce_retracing=True)  # one trace for all numbers of boxes
def merge(boxes: tf.Tensor, scores: tf.Tensor, classes: tf.Tensor, threshold: float) -> Merged:
    """Merge boxes greedily: while the smallest match score does not exceed the threshold, merge that pair.

    The result does not depend on the order of the input. Boxes that are not finite or have no area are left out.
    Each step costs O(n): every row keeps its nearest neighbour, and only rows whose neighbour has just gone farther
    are compared with all others again.

    Args:
        boxes: float32 [n, 4] yxyx, in any unit in which both axes measure the same (pixels).
        scores: float32 [n], at least 0.
        classes: int32 [n].
        threshold: The t of (f).
    """
    areas = box_ops.area(boxes)  # of finite edges, and still too large for a float32 where they are absurd
    finite = tf.reduce_all(tf.math.is_finite(boxes), axis=-1) & tf.math.is_finite(areas) & tf.math.is_finite(scores)
    good = finite & (areas > 0)
    boxes, scores, classes = (tf.boolean_mask(values, good) for values in (boxes, scores, classes))
    order = _canonical_order(boxes, scores, classes)
    boxes, scores, classes = (tf.gather(values, order) for values in (boxes, scores, classes))
    count = tf.shape(boxes)[0]
    everyone = tf.range(count)
    state = _State(
        boxes, scores, tf.ones_like(scores), tf.ones([count], tf.bool), tf.fill([count], NEVER), tf.zeros_like(everyone)
    )
    state = tf.cond(
        count > 1,
        lambda: tf.while_loop(
            lambda *s: tf.reduce_min(_State(*s).nearest) <= threshold,
            lambda *s: _step(_State(*s), everyone, classes),
            _search(state, everyone, classes),
            parallel_iterations=1,
            maximum_iterations=count,
        ),
        lambda: state,
    )
    state = _State(*state)
    kept = tf.boolean_mask(everyone, state.alive)
    kept = tf.gather(kept, tf.argsort(tf.gather(state.scores, kept), direction="DESCENDING", stable=True))
    return Merged(*(tf.gather(values, kept) for values in (state.boxes, state.scores, classes, state.counts)))


def _step(state: _State, everyone: tf.Tensor, classes: tf.Tensor) -> _State:
    """Merge the best pair into its first row, strike out its second, and mend the nearest neighbours."""
    first = tf.argmin(state.nearest, output_type=tf.int32)
    second = state.partner[first]
    counts = state.counts[first] + state.counts[second]
    box = (state.boxes[first] * state.counts[first] + state.boxes[second] * state.counts[second]) / counts
    at = first[None, None]
    alive = state.alive & (everyone != second)
    mended = _State(
        boxes=tf.tensor_scatter_nd_update(state.boxes, at, box[None]),
        scores=tf.tensor_scatter_nd_add(state.scores, at, state.scores[second][None]),
        counts=tf.tensor_scatter_nd_update(state.counts, at, counts[None]),
        alive=alive,
        nearest=tf.where(alive, state.nearest, NEVER),
        partner=state.partner,
    )
    # The new box may have come nearer to rows that keep their neighbour.
    distance = tf.where(
        alive & (classes == classes[first]) & (everyone != first), match_score(box, mended.boxes), NEVER
    )
    nearer = (distance < mended.nearest) | ((distance == mended.nearest) & (first < mended.partner))
    mended = mended._replace(
        nearest=tf.where(nearer, distance, mended.nearest), partner=tf.where(nearer, first, mended.partner)
    )
    # A row whose neighbour has become the new box and is no farther keeps it: equal boxes, as clipping to the image
    # makes them by the hundred, would all be searched at each step otherwise.
    left = ((state.partner == first) | (state.partner == second)) & (distance > state.nearest)
    lost = alive & (left | (everyone == first))
    return _search(mended, tf.where(lost)[:, 0], classes)


def _search(state: _State, rows: tf.Tensor, classes: tf.Tensor) -> _State:
    """Find the nearest neighbour of some rows [r] anew."""
    rows = tf.cast(rows, tf.int32)
    scores = match_score(tf.gather(state.boxes, rows)[:, None], state.boxes[None])
    others = state.alive[None] & (rows[:, None] != tf.range(tf.shape(state.boxes)[0])[None])
    scores = tf.where(others & (tf.gather(classes, rows)[:, None] == classes[None]), scores, NEVER)
    partner = tf.argmin(scores, axis=1, output_type=tf.int32)
    return state._replace(
        nearest=tf.tensor_scatter_nd_update(state.nearest, rows[:, None], tf.reduce_min(scores, axis=1)),
        partner=tf.tensor_scatter_nd_update(state.partner, rows[:, None], partner),
    )


def _canonical_order(boxes: tf.Tensor, scores: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """Sort by falling score, then by class and edges, so that ties fall the same way whatever the input's order."""
    keys = [-scores, tf.cast(classes, tf.float32), *tf.unstack(boxes, axis=-1)]
    order = tf.range(tf.shape(scores)[0])
    for key in reversed(keys):
        order = tf.gather(order, tf.argsort(tf.gather(key, order), stable=True))
    return order
