"""Greedy merging of groups of boxes (4.3 d-g), exact, in rounds of many merges.

Greedy means: of all pairs the one with the smallest match score is merged, then again, until the smallest exceeds
the threshold: thousands of steps that each look at all boxes. Here a round takes several. The next pair in turn is
always one of two boxes that are each other's nearest; a round takes the best of such pairs, makes their merged boxes
and scores these with all others, and then accepts, from the smallest score up, the pairs before which nothing else
would have had its turn: no merged box of an earlier pair with anything, and no box that an earlier pair has robbed of
its nearest with whatever comes next for it. So the result is that of the plain loop, ties included, where of equal
scores the pair of the first boxes has its turn.

Each box knows its nearest, and a lower bound for the rest. When it has lost its nearest it is searched again, but
only once the bound says that its turn may come. A group of n boxes takes about n / 6 rounds.
"""

import tensorflow as tf

from overfeat_tf.merge.greedy_round import SHAPES, Round, State, find_nearest, put
from overfeat_tf.merge.match_score import FAR, NO_BOX, ROW, match_scores

CROWD = 64  # slots from which it pays to move the boxes that are left together
BLOCK = 2**16  # scores found at a time at the start: few enough to stay in a core's cache


def merge_groups(rows: tf.Tensor, threshold: tf.Tensor | float, average: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Merge the boxes of each group while the smallest match score of a pair does not exceed the threshold.

    Args:
        rows: float32 [G, m, ROW], see `matching`; a group's boxes first. Their order decides between equal scores.
        threshold: The t of (f).
        average: Of `options.AVERAGES`.

    Returns:
        The boxes that are left, as rows [G, m, ROW] in the first slots of those they come from; and for each slot the
        one of the box that it is now part of, int32 [G, m].
    """
    groups, m = tf.shape(rows)[0], tf.shape(rows)[1] + 1
    none = tf.tile(tf.constant(NO_BOX)[None, None], [groups, 1, 1])

    def unfinished(*state):
        return tf.reduce_min(State(*state).nearest) <= threshold

    def crowded(slots: tf.Tensor, *state):
        return (slots <= CROWD) | (tf.reduce_max(State(*state).left) * 3 > slots * 2)

    def until_sparse(*state):
        packed, slots = _pack(State(*state), groups)
        step = Round(groups, slots, threshold, average)
        return _while(
            lambda *state: unfinished(*state) & crowded(slots, *state), lambda *state: step(State(*state)), packed
        )

    state = _while(unfinished, until_sparse, _start(tf.concat([rows, none], axis=1)))
    merged = tf.tensor_scatter_nd_update(
        tf.tile(tf.constant(NO_BOX)[None], [groups * m, 1]), state.names[:, None], state.rows
    )
    roots = _roots(state.parents) - tf.repeat(tf.range(groups) * m, m)
    return tf.reshape(merged, [groups, m, ROW])[:, :-1], tf.reshape(roots, [groups, m])[:, :-1]


def _while(condition, body, state: State) -> State:
    def shaped(*state):
        return [tf.ensure_shape(value, shape) for value, shape in zip(body(*state), SHAPES, strict=True)]

    return State(*tf.while_loop(condition, shaped, list(state), shape_invariants=list(SHAPES), parallel_iterations=1))


def _start(rows: tf.Tensor) -> State:
    """Score all pairs, block by block."""
    groups, m = tf.shape(rows)[0], tf.shape(rows)[1]
    size = tf.clip_by_value(BLOCK // (groups * m), 1, m)
    starts = tf.reshape(tf.range(groups * size) * m, [groups, size])

    def search(block: tf.Tensor):
        slots = tf.minimum(block * size + tf.range(size), m - 1)
        scores = tf.reshape(match_scores(tf.gather(rows, slots, axis=1), rows), [-1])
        return find_nearest(
            put(scores, starts + slots, tf.fill([groups, size], FAR)), tf.stack([groups, size, m]), starts
        )

    floats, places = tf.TensorSpec([None, None]), tf.TensorSpec([None, None], tf.int32)
    found = tf.map_fn(
        search, tf.range((m + size - 1) // size), fn_output_signature=(floats, places, floats), parallel_iterations=1
    )
    nearest, place, second = (tf.reshape(tf.transpose(each, [1, 0, 2]), [groups, -1])[:, :m] for each in found)
    partner = place + tf.range(groups)[:, None] * m
    there, slots = tf.reshape(rows[..., -1] > 0, [-1]), tf.range(groups * m)
    return State(
        rows=tf.reshape(rows, [-1, ROW]),
        nearest=tf.where(there, tf.reshape(nearest, [-1]), FAR),
        partner=tf.where(there, tf.reshape(partner, [-1]), slots),
        second=tf.where(there, tf.reshape(second, [-1]), FAR),
        names=slots,
        parents=slots,
        left=tf.math.count_nonzero(rows[..., -1], axis=1, dtype=tf.int32),
    )


def _pack(state: State, groups: tf.Tensor) -> tuple[State, tf.Tensor]:
    """Move the boxes that are left to the front, in their order, and give up the slots that no group needs."""
    old, new = tf.shape(state.nearest)[0] // groups, tf.reduce_max(state.left) + 1
    empty = tf.reshape(state.rows[:, -1] == 0, [groups, old])
    order = tf.argsort(tf.cast(empty, tf.int32), axis=1, stable=True)
    kept = tf.reshape(order[:, :new] + tf.range(groups)[:, None] * old, [-1])
    moved = tf.reshape(tf.minimum(tf.argsort(order, axis=1), new - 1) + tf.range(groups)[:, None] * new, [-1])
    packed = state._replace(
        rows=tf.gather(state.rows, kept),
        nearest=tf.gather(state.nearest, kept),
        partner=tf.gather(moved, tf.gather(state.partner, kept)),
        second=tf.gather(state.second, kept),
        names=tf.gather(state.names, kept),
    )
    return packed, new


def _roots(parents: tf.Tensor) -> tf.Tensor:
    """Follow parents [n] to the slots that have none."""
    return tf.while_loop(
        lambda found: tf.reduce_any(tf.gather(found, found) != found),
        lambda found: [tf.gather(found, found)],
        [parents],
    )[0]
