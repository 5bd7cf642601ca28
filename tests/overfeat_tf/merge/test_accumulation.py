"""Merging (4.3 d-g) against a plain one that compares all pairs before each step."""

import math
from functools import cache
from itertools import combinations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plain_merging import THRESHOLD, F, plain_area, plain_match, plain_merge

from overfeat_tf.merge.accumulation import merge
from overfeat_tf.merge.match_score import match_scores, to_rows
from overfeat_tf.options import AVERAGES

WAYS = [(average, across) for average in AVERAGES for across in (False, True)]
SPECS = [tf.TensorSpec([None, 4]), tf.TensorSpec([None]), tf.TensorSpec([None], tf.int32), tf.TensorSpec([])]


@cache
def merge_in_graph(average="weighted", across_classes=False):
    return tf.function(lambda *case: merge(*case, average, across_classes), SPECS, autograph=False)


def merged(boxes, scores, classes, threshold=THRESHOLD, *ways):
    """Merge, in a graph as the servables do; numpy arrays out."""
    answers = merge_in_graph(*ways)(
        tf.constant(np.reshape(boxes, (-1, 4)), tf.float32),
        tf.constant(scores, tf.float32),
        tf.constant(classes, tf.int32),
        threshold,
    )
    return [answer.numpy() for answer in answers]


def assert_same(found, expected, rtol=1e-5):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=1e-6)


def random_case(seed, count=40):
    """Boxes scattered around a few objects, of two classes: they merge into some, not into one, not into none."""
    rng = np.random.default_rng(seed)
    objects = rng.uniform(0, 100, (5, 2))
    centres = objects[rng.integers(0, 5, count)] + rng.normal(0, 6, (count, 2))
    sides = rng.uniform(15, 45, (count, 2))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1).astype(F)
    return boxes, rng.uniform(0.1, 1, count).astype(F), rng.integers(1, 3, count)


grid = st.integers(0, 4)  # few values, so that boxes and match scores tie
tied_row = st.tuples(
    st.tuples(grid, grid, st.integers(0, 3), st.integers(0, 3)).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])),
    st.sampled_from([0.25, 0.5, 1.0]),
    st.integers(1, 2),
)
wild = st.integers(-800, 800).map(lambda n: n / 16) | st.sampled_from([math.nan, math.inf, -math.inf])
wild_row = st.tuples(st.tuples(wild, wild, wild, wild), st.floats(0, 1, width=32) | st.just(math.nan), st.just(1))
# Once the two in the middle are one, it is as near to the first as the last is: the earlier of the two is taken.
ABREAST = [
    ((y - 2, x - 2, y + 2, x + 2), score, 1) for y, x, score in ((0, 3, 1.0), (-1, 0, 0.5), (1, 0, 0.5), (0, 6, 0.25))
]


@pytest.mark.parametrize("threshold", [0.7, THRESHOLD, 1.5])
@pytest.mark.parametrize("seed", range(4))
def test_random_boxes(seed, threshold):
    case = random_case(seed)
    found = merged(*case, threshold)
    assert 2 < len(found[0]) < 40  # something merged, and not everything
    assert_same(found, plain_merge(*case, threshold))


@pytest.mark.parametrize("across_classes", [False, True], ids=["within", "across"])
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("seed", range(3))
def test_the_ways_to_merge(seed, average, across_classes):
    case = random_case(seed)
    found = merged(*case, 0.7, average, across_classes)
    assert 2 < len(found[0]) < 40
    assert_same(found, plain_merge(*case, 0.7, average, across_classes), rtol=1e-4)


def test_the_ways_differ():
    case = random_case(0)
    answers = [merged(*case, 0.7, *ways) for ways in (("weighted",), ("plain",), ("weighted", True))]
    assert not any(np.array_equal(one[0], other[0]) for one, other in combinations(answers, 2))


def test_across_classes_the_largest_sum_tells_the_class():
    boxes = [(0, 0, 10, 10)] * 3 + [(0, 0, 10, 11), (50, 50, 60, 60)]
    found = merged(boxes, [0.5, 0.4, 0.4, 0.2, 0.3], [1, 2, 2, 1, 3], THRESHOLD, "weighted", True)
    np.testing.assert_allclose(found[1], [0.8, 0.3], rtol=1e-6)  # class 1 has 0.7 at the same place
    assert (found[2].tolist(), found[3].tolist()) == ([2, 3], [4, 1])


@pytest.mark.parametrize("seed", range(2))
def test_hundreds_of_boxes(seed):
    # Enough for many rounds, for searching again, and for slots to be given up; classes of unlike sizes, two of them
    # with the same boxes.
    rng = np.random.default_rng(seed)
    objects = rng.uniform(0, 300, (4, 2))
    cases = []
    for label, count in enumerate((150, 150, 40, 3, 1), start=1):
        centres = objects[rng.integers(0, 4, count)] + rng.normal(0, 12, (count, 2))
        sides = rng.uniform(30, 80, (count, 2))
        boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1).astype(F)
        cases.append((cases[0][0] if label == 2 else boxes, rng.uniform(0.1, 1, count).astype(F), [label] * count))
    case = [np.concatenate(each) for each in zip(*cases, strict=True)]
    found = merged(*case, THRESHOLD)
    assert 10 < len(found[0]) < 200
    expected = [np.concatenate(each) for each in zip(*(fast_merge(*one, THRESHOLD) for one in cases), strict=True)]
    order = np.argsort(-expected[1], kind="stable")
    assert_same(found, [each[order] for each in expected], rtol=1e-3)


def fast_merge(boxes, scores, classes, threshold):
    """Merge as `plain_merge` does, with the scores of all pairs kept: hundreds of boxes take it seconds otherwise."""
    order = np.lexsort((scores, *boxes.T[::-1]))
    boxes, scores, counts = boxes[order].astype(float), scores[order].astype(float), np.ones(len(order))
    pairs = np.full((len(order),) * 2, np.inf)

    def line(i):
        return np.array([plain_match(boxes[i], box) for box in boxes])

    for i in range(len(order)):
        pairs[i] = line(i)
    np.fill_diagonal(pairs, np.inf)
    while pairs.min() <= threshold:
        i, j = np.unravel_index(pairs.argmin(), pairs.shape)
        boxes[i] += (boxes[j] - boxes[i]) * counts[j] / (counts[i] + counts[j])
        counts[i], scores[i], counts[j] = counts[i] + counts[j], scores[i] + scores[j], 0
        pairs[j] = pairs[:, j] = np.inf
        pairs[i] = pairs[:, i] = np.where((counts > 0) & (np.arange(len(counts)) != i), line(i), np.inf)
    left = counts > 0
    return boxes[left], scores[left], np.full(left.sum(), classes[0]), counts[left]


@settings(max_examples=60, deadline=None)
@given(st.lists(tied_row, max_size=12), st.sampled_from([0.4, THRESHOLD, 1.0]), st.sampled_from(WAYS))
@example([], THRESHOLD, WAYS[0])
@example([((0, 0, 2, 2), 1.0, 1)], THRESHOLD, WAYS[0])
@example([((0, 0, 2, 2), 1.0, 1)] * 3 + [((0, 0, 2, 2), 1.0, 2)], THRESHOLD, WAYS[0])  # of two classes
@example([((0, 0, k, k), 0.5, 1) for k in (1, 2, 4, 8)], THRESHOLD, WAYS[0])  # nested
@example([((0, k, 1, k + 1), 0.5, 1) for k in range(5)], 1.0, WAYS[0])  # side by side: each pair's score is 2
@example([((0, k, 2, k + 2), 0.5, 1) for k in range(6)], THRESHOLD, WAYS[0])  # a chain, all neighbours equally near
@example([((0, 0, 2, 2), 1.0, 1)] * 2 + [((0, 1, 2, 3), 1.0, 1)], 0.0, WAYS[0])  # a score of the threshold itself
@example(ABREAST, 1.7, WAYS[0])
@example(
    [((0, 0, 0, 3), 0.5, 1), ((1, 1, 1, 1), 0.5, 1), ((0, 0, 3, 3), 0.5, 1)], THRESHOLD, WAYS[0]
)  # two without area
def test_tied_boxes(rows, threshold, ways):
    case = [[row[column] for row in rows] for column in range(3)]
    found, expected = merged(*case, threshold, *ways), plain_merge(*case, threshold, *ways)
    if ways[1]:  # which of equal sums names a box, and where boxes of equal score come, is left open
        found, expected = ([each[np.lexsort(answer[0].T)] for each in answer] for answer in (found, expected))
        found, expected = ([*answer[:2], answer[3]] for answer in (found, expected))
    assert_same(found, expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(wild_row, max_size=8))
@example([((0, 0, 2, 2), 1.0, 1), ((0, 0, math.nan, 2), 1.0, 1), ((0, 0, 2, 2), 0.5, 1), ((0, 0, 1, 1), math.nan, 1)])
@example([((0, 0, 2, 2), 1.0, 1), ((-math.inf, 0, 2, math.inf), 1.0, 1), ((3, 3, 1, 1), 1.0, 1)])
def test_boxes_that_are_none_are_left_out(rows):
    boxes, scores, classes = ([row[column] for row in rows] for column in range(3))
    found = merged(boxes, scores, classes)
    good = [row for row in rows if all(map(math.isfinite, (*row[0], row[1]))) and plain_area(np.asarray(row[0], F)) > 0]
    assert np.isfinite(found[0]).all() and np.isfinite(found[1]).all()
    assert found[3].sum() == len(good)
    assert found[1].sum() == pytest.approx(sum(row[1] for row in good), rel=1e-5)


@pytest.mark.parametrize("absurd", [(0, 0, 1e25, 1e25), (3e38, 0, 3.2e38, 1e-3)], ids=["area", "centre"])
def test_a_box_whose_measures_overflow_does_not_stop_the_others(absurd):
    boxes = [(0, 0, 2, 2), (0, 0, 2, 2.125), absurd]
    found = merged(boxes, [1, 1, 1], [1, 1, 1])
    assert found[3].tolist() == [2]


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_input_does_not_matter(seed):
    boxes, scores, classes = random_case(seed)
    scores, boxes = np.round(scores * 3) / 3, np.round(boxes / 8) * 8  # ties of every kind
    expected = merged(boxes, scores, classes)
    assert len(expected[0]) < 30
    for shuffle in range(3):
        order = np.random.default_rng(shuffle).permutation(len(boxes))
        for ours, theirs in zip(merged(boxes[order], scores[order], classes[order]), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("seed", range(3))
def test_evidence_is_conserved_class_by_class(seed):
    boxes, scores, classes = random_case(seed, 200)
    _, sums, labels, counts = merged(boxes, scores, classes)
    assert len(sums) < 100
    np.testing.assert_array_equal(sums, np.sort(sums)[::-1])
    for label in (1, 2):
        assert sums[labels == label].sum() == pytest.approx(scores[classes == label].sum(), rel=1e-4)
        assert counts[labels == label].sum() == (classes == label).sum()


@pytest.mark.parametrize("seed", range(3))
def test_moving_or_scaling_the_image_changes_nothing_else(seed):
    boxes, scores, classes = random_case(seed)
    expected = merged(boxes, scores, classes)
    for factor in (2.0**-8, 2.0**5):  # exact in floating point
        found = merged(boxes * F(factor), scores, classes)
        np.testing.assert_array_equal(found[0], expected[0] * F(factor))
        for ours, theirs in zip(found[1:], expected[1:], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    offset = np.array([17, -40, 17, -40], F)
    assert_same(merged(boxes + offset, scores, classes), (expected[0] + offset, *expected[1:]), rtol=1e-4)


def test_images_side_by_side_are_merged_as_alone():
    alone = [random_case(seed, 20 + 30 * seed) for seed in range(3)]
    numbers = [classes + 10 * image for image, (_, _, classes) in enumerate(alone)]
    boxes, scores = (np.concatenate([case[i] for case in alone]) for i in range(2))
    together = merged(boxes, scores, np.concatenate(numbers))
    for image, case in enumerate(alone):
        own = together[2] // 10 == image
        expected = merged(*case)
        assert_same([together[0][own], together[1][own], together[2][own] % 10, together[3][own]], expected)


@pytest.mark.parametrize("count", [2, 2000])
def test_identical_boxes_become_one(count):
    # Boxes clipped to the image are often identical: each step has to stay cheap then too.
    boxes = np.tile(F([[10, 20, 30, 60]]), (count, 1))
    found = merged(boxes, np.ones(count), np.full(count, 7))
    np.testing.assert_allclose(found[0], boxes[:1], rtol=1e-5)
    assert (found[1].tolist(), found[2].tolist(), found[3].tolist()) == ([count], [7], [count])


def test_disjoint_boxes_stay_as_they_are():
    boxes = np.array([[10 * k, 0, 10 * k + 5, 5] for k in range(20)], F)
    scores = np.linspace(1, 0.1, 20, dtype=F)
    found = merged(boxes, scores, np.ones(20))
    np.testing.assert_array_equal(found[0], boxes)
    np.testing.assert_array_equal(found[3], 1)


def test_match_score_is_0_for_equals_and_at_least_1_for_strangers():
    def match_score(a, b):
        one, other = (to_rows(tf.constant(boxes, tf.float32), tf.ones(len(boxes)))[None] for boxes in (a, b))
        return match_scores(one, other)[0].numpy()

    boxes = random_case(0)[0]
    scores = match_score(boxes, boxes)
    np.testing.assert_array_equal(scores, scores.T)
    np.testing.assert_allclose(np.diag(scores), 0, atol=1e-6)
    apart = match_score([[0, 0, 2, 2]], [[0, 2, 2, 4], [9, 9, 11, 11]])
    np.testing.assert_allclose(apart[0], [1 + 2 / 2, 1 + 9 * 2**0.5 / 2], rtol=1e-6)
    # A larger intersection makes a better match, and so does a smaller distance.
    nearer = match_score([[0, 0, 10, 10]], [[0, 0, 10, 10], [0, 1, 10, 11], [0, 5, 10, 15], [0, 9, 10, 19]])
    assert (np.diff(nearer) > 0).all()
