"""Greedy merging of groups of boxes (4.3 d-g), exact, in rounds of many merges.

Greedy means: of all pairs the one with the smallest match score is merged, then again, until the smallest exceeds
the threshold: thousands of steps that each look at all boxes. Here a round takes several. The next pair is always one
of two boxes that are each other's nearest. A round takes the best of such pairs, makes their merged boxes and scores
these with all others. Then it accepts, from the smallest score up, the pairs that the plain loop would merge before
anything new: before any pair with a merged box of an earlier pair, and before any new pair of a box whose nearest an
earlier pair has taken. So the result is that of the plain loop, ties included: of equal scores the pair of the first
boxes is merged first.

Each box knows its nearest, and a lower bound for the rest. A box that has lost its nearest is searched again, but
only once the bound says that it may be next. A group of n boxes takes about n / 6 rounds.
"""

from typing import NamedTuple

import tensorflow as tf

from overfeat_tf.merge.match_score import FAR, NO_BOX, ROW, box_merge, match_scores

CROWD = 64  # slots from which it pays to pack the boxes that are left
BLOCK = 2**16  # scores found at a time at the start: few enough to stay in a core's cache
# Pairs that a round tries, and boxes that it searches again: more would save fewer rounds than they cost.
CANDIDATES = 16
SEARCHED = 8


class State(NamedTuple):
    """G groups of boxes in m slots each, the last of which stays empty, flat: slot s of group g is at g m + s.

    A merged box takes the first of its two slots, and the second becomes empty.

    Attributes:
        rows: float32 [G m, ROW], the boxes.
        nearest: float32 [G m], the smallest match score with any other box of the group, or at most that.
        partner: int32 [G m], the first box that has it; the box itself where `nearest` is only a lower bound.
        second: float32 [G m], at most the score of any box but the partner.
        names: int32 [G m], where slots were at the start.
        parents: int32 [G M], for the slots of the start, which of them each has been merged into.
        left: int32 [G], how many boxes a group has left.
    """

    rows: tf.Tensor
    nearest: tf.Tensor
    partner: tf.Tensor
    second: tf.Tensor
    names: tf.Tensor
    parents: tf.Tensor
    left: tf.Tensor


SHAPES = State(tf.TensorShape([None, ROW]), *[tf.TensorShape([None])] * 6)


def merge_groups(rows: tf.Tensor, threshold: tf.Tensor | float, average: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Merge the boxes of each group while the smallest match score of a pair does not exceed the threshold.

    Args:
        rows: float32 [G, m, ROW], see `match_score`; a group's boxes first. Their order decides between equal scores.
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
    valid, slots = tf.reshape(rows[..., -1] > 0, [-1]), tf.range(groups * m)
    return State(
        rows=tf.reshape(rows, [-1, ROW]),
        nearest=tf.where(valid, tf.reshape(nearest, [-1]), FAR),
        partner=tf.where(valid, tf.reshape(partner, [-1]), slots),
        second=tf.where(valid, tf.reshape(second, [-1]), FAR),
        names=slots,
        parents=slots,
        left=tf.math.count_nonzero(rows[..., -1], axis=1, dtype=tf.int32),
    )


def _pack(state: State, groups: tf.Tensor) -> tuple[State, tf.Tensor]:
    """Move the boxes that are left to the front, in their order, and drop the slots that no group needs."""
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


class Lines(NamedTuple):
    """The scores of a round: of the k boxes that it tries with all slots and each other, and of r boxes with all slots.

    Attributes:
        scores: float32 [G, k + r, m + k]; FAR for the two boxes that one is merged from, and for itself.
        nearest: float32 [G, k + r], the smallest.
        place: int32 [G, k + r], the first place in the line that has it.
        second: float32 [G, k + r], the next smallest.
    """

    scores: tf.Tensor
    nearest: tf.Tensor
    place: tf.Tensor
    second: tf.Tensor


class Round:
    """A round for G groups of m slots; what does not change from round to round is made once.

    Args:
        groups, slots: G and m.
        threshold: The t of (f).
        average: Of `options.AVERAGES`.
    """

    def __init__(self, groups: tf.Tensor, slots: tf.Tensor, threshold: tf.Tensor | float, average: str):
        self._m, self._threshold, self._average = slots, threshold, average
        self._k, self._r = k, r = tf.minimum(CANDIDATES, slots), tf.minimum(SEARCHED, slots)
        self._all = tf.range(groups * slots)
        self._base = tf.range(groups)[:, None] * slots  # a group's first slot
        self._last = self._base + slots - 1  # its last one, which is empty: where nothing is to be written
        self._shape = tf.stack([groups, k + r, slots + k])
        self._starts = tf.reshape(tf.range(groups * (k + r)) * (slots + k), [groups, k + r])
        self._pairs = tf.reshape(tf.range(groups * k), [groups, k])
        made = slots + tf.range(k)
        itself, with_made = self._starts[:, :k] + made, self._starts[:, k:, None] + made
        self._excluded = tf.concat([itself, tf.reshape(with_made, [groups, r * k])], axis=1)
        self._earlier = tf.range(k)[None] < tf.range(k)[:, None]

    def __call__(self, state: State) -> State:
        """Merge the pairs that the plain loop would merge next."""
        first, second = self._propose(state)
        searched, bound = self._stale(state)
        made = box_merge(tf.gather(state.rows, first), tf.gather(state.rows, second), self._average)
        lines = self._score(state, made, first, second, searched)
        accepted = self._accept(state, lines, first, second, bound)
        kept, gone = tf.where(accepted, first, self._last), tf.where(accepted, second, self._last)
        state = self._search(state, lines, searched)
        state = self._update(state, lines, accepted, kept, gone)
        return self._write(state, lines, made, accepted, kept, gone)

    def _propose(self, state: State) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the best pairs of boxes that are each other's nearest, by their first slots: [G, k] twice."""
        mutual = (tf.gather(state.partner, state.partner) == self._all) & (self._all < state.partner)
        score, slot = tf.math.top_k(-self._by_group(tf.where(mutual, state.nearest, FAR)), self._k)
        first = tf.sort(tf.where(-score <= self._threshold, slot + self._base, self._last), axis=1)
        return first, tf.gather(state.partner, first)

    def _stale(self, state: State) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the boxes to search again, [G, r], and the least score that any such box may have, [G, 1]."""
        bounds = self._by_group(tf.where(state.partner == self._all, state.nearest, FAR))
        bound, slot = tf.math.top_k(-bounds, self._r)
        return tf.where(-bound <= self._threshold, slot + self._base, self._last), -bound[:, :1]

    def _score(self, state: State, made: tf.Tensor, first: tf.Tensor, second: tf.Tensor, searched: tf.Tensor) -> Lines:
        boxes = tf.reshape(state.rows, tf.stack([-1, self._m, ROW]))
        rows = tf.concat([made, tf.gather(state.rows, searched)], axis=1)
        scores = match_scores(rows, tf.concat([boxes, made], axis=1))
        starts = self._starts - self._base
        excluded = [starts[:, : self._k] + first, starts[:, : self._k] + second, starts[:, self._k :] + searched]
        places = tf.concat([*excluded, self._excluded], axis=1)
        scores = put(tf.reshape(scores, [-1]), places, tf.fill(tf.shape(places), FAR))
        return Lines(tf.reshape(scores, self._shape), *find_nearest(scores, self._shape, self._starts))

    def _accept(self, state: State, lines: Lines, first: tf.Tensor, second: tf.Tensor, bound: tf.Tensor) -> tf.Tensor:
        """Return which pairs the plain loop merges before anything new: bool [G, k]."""
        score = tf.gather(state.nearest, first)
        pair = put(tf.fill(tf.shape(self._all), -1), tf.concat([first, second], 1), tf.tile(self._pairs, [1, 2]))
        taker = tf.gather(pair, state.partner)  # the pair that a box's nearest belongs to
        left_with = tf.where(taker != pair, state.second, FAR)
        comes_next = tf.math.unsorted_segment_min(left_with, taker, tf.size(self._pairs))
        new = tf.minimum(lines.nearest[:, : self._k], tf.reshape(comes_next, tf.shape(first)))
        mine, others = score[:, :, None], score[:, None]
        before = (others < mine) | ((others == mine) & self._earlier)
        soonest = tf.reduce_min(tf.where(before, new[:, None], FAR), axis=2)
        return (first < self._last) & (score < bound) & (score < soonest)

    def _search(self, state: State, lines: Lines, searched: tf.Tensor) -> State:
        """Record the nearest boxes of those that were searched again."""
        valid = searched < self._last
        nearest, place, second = (each[:, self._k :] for each in lines[1:])
        return state._replace(
            nearest=put(state.nearest, searched, tf.where(valid, nearest, FAR)),
            partner=put(state.partner, searched, tf.where(valid, place + self._base, searched)),
            second=put(state.second, searched, tf.where(valid, second, FAR)),
        )

    def _update(self, state: State, lines: Lines, accepted: tf.Tensor, kept: tf.Tensor, gone: tf.Tensor) -> State:
        """Update all boxes' nearest for the new boxes and for those that are gone."""
        to_new = tf.where(accepted[..., None], lines.scores[:, : self._k, : self._m], FAR)
        closest = tf.reshape(tf.reduce_min(to_new, axis=1), [-1])
        pair = tf.argmin(to_new, axis=1, output_type=tf.int32) + self._pairs[:, :1]
        which = tf.gather(tf.reshape(kept, [-1]), tf.reshape(pair, [-1]))
        lost = tf.gather(self._changed(kept, gone), state.partner)
        bound = tf.where(lost, state.second, state.nearest)
        exact = ~lost & (state.partner != self._all)
        nearer = (closest < bound) | ((closest == bound) & exact & (which < state.partner))
        return state._replace(
            nearest=tf.minimum(closest, bound),
            partner=tf.where(nearer, which, tf.where(lost, self._all, state.partner)),
            second=tf.where(nearer, closest, tf.minimum(closest, state.second)),
        )

    def _write(self, state: State, lines: Lines, made, accepted: tf.Tensor, kept: tf.Tensor, gone: tf.Tensor) -> State:
        """Write the new boxes into their slots and empty the others."""
        nearest, place, second = (each[:, : self._k] for each in lines[1:])
        to_new = tf.where(accepted[:, None], lines.scores[:, : self._k, self._m :], FAR)
        new = tf.reduce_min(to_new, axis=2)
        partner = tf.minimum(place, self._m - 1) + self._base
        # A nearest box that has just been merged, or is as new, is only a lower bound.
        sure = (place < self._m) & ~tf.gather(self._changed(kept, gone), partner) & (nearest < new)
        both, never = tf.concat([gone, kept], axis=1), tf.fill(tf.shape(gone), FAR)
        rows = tf.where(accepted[..., None], made, NO_BOX)
        return state._replace(
            rows=put(state.rows, both, tf.concat([tf.broadcast_to(NO_BOX, tf.shape(rows)), rows], axis=1)),
            nearest=put(state.nearest, both, tf.concat([never, tf.where(accepted, nearest, FAR)], axis=1)),
            partner=put(state.partner, both, tf.concat([gone, tf.where(accepted & sure, partner, kept)], axis=1)),
            second=put(
                state.second, both, tf.concat([never, tf.where(accepted, tf.minimum(second, new), FAR)], axis=1)
            ),
            parents=put(state.parents, tf.gather(state.names, gone), tf.gather(state.names, kept)),
            left=state.left - tf.math.count_nonzero(accepted, axis=1, dtype=tf.int32),
        )

    def _changed(self, kept: tf.Tensor, gone: tf.Tensor) -> tf.Tensor:
        places = tf.concat([gone, kept], axis=1)
        return put(tf.zeros_like(self._all, tf.bool), places, tf.ones_like(places, tf.bool))

    def _by_group(self, values: tf.Tensor) -> tf.Tensor:
        return tf.reshape(values, tf.stack([-1, self._m]))


def put(values: tf.Tensor, places: tf.Tensor, updates: tf.Tensor) -> tf.Tensor:
    """Write updates at places of the values' first dimension."""
    return tf.tensor_scatter_nd_update(values, places[..., None], updates)


def find_nearest(scores: tf.Tensor, shape: tf.Tensor, starts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Find in each line of flat scores the smallest, the first place that has it, and the next smallest.

    Args:
        scores: float32 [G k m].
        shape: (G, k, m).
        starts: int32 [G, k], where the lines begin.
    """
    lines = tf.reshape(scores, shape)
    place = tf.argmin(lines, axis=2, output_type=tf.int32)
    others = put(scores, starts + place, tf.fill(tf.shape(place), FAR))
    return tf.reduce_min(lines, axis=2), place, tf.reduce_min(tf.reshape(others, shape), axis=2)
