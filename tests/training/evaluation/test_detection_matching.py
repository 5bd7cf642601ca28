"""The matcher of detections to ground truth, against plain loops."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from independent import match_by_loops, overlap

from training.evaluation.matching import match_detections


def random_case(seed: int):
    """Few classes and boxes close to the objects, so that most detections compete for one."""
    rng = np.random.default_rng(seed)
    m = rng.integers(0, 6)
    corner = rng.uniform(0, 5, (m, 2))
    truth = np.concatenate([corner, corner + rng.uniform(2, 6, (m, 2))], axis=1)
    classes, ignored = rng.integers(0, 2, m), rng.random(m) < 0.3
    crowd = ignored & (rng.random(m) < 0.5)
    copies = rng.integers(0, m, rng.integers(0, 12)) if m else np.zeros(0, int)
    boxes = np.concatenate([truth[copies] + rng.normal(0, 0.5, (len(copies), 4)), [[20, 20, 22, 22]]])
    labels = np.append(np.where(rng.random(len(copies)) < 0.8, classes[copies], rng.integers(0, 2, len(copies))), 0)
    return boxes, rng.permutation(len(boxes)) / 10, labels, truth, classes, ignored, crowd


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32), st.sampled_from((0.3, 0.5, 0.75)))
def test_matches_are_those_of_plain_loops(seed, threshold):
    *case, crowd = random_case(seed)
    found = match_detections(*case, threshold, crowd)
    wanted = match_by_loops(*case, threshold, crowd)
    ignored = case[-1]
    assert found.truth.tolist() == wanted
    assert found.right.tolist() == [j >= 0 and not ignored[j] for j in wanted]
    assert found.ignored.tolist() == [j >= 0 and bool(ignored[j]) for j in wanted]
    assert found.wrong.tolist() == [j < 0 for j in wanted]
    assert found.found.tolist() == [j in wanted and not ignored[j] for j in range(len(ignored))]


HERE, THERE = [0, 0, 10, 10], [20, 20, 30, 30]


def test_an_object_is_found_once_by_the_best_score():
    found = match_detections([HERE, HERE, THERE], [0.3, 0.9, 0.5], [1, 1, 2], [HERE, THERE], [1, 1], [False, False])
    assert found.truth.tolist() == [-1, 0, -1] and found.found.tolist() == [True, False]


def test_an_ignored_object_takes_any_number_of_detections_but_only_after_those_that_count():
    found = match_detections([HERE] * 3, [0.9, 0.8, 0.7], [0] * 3, [HERE, [0, 0, 10, 8]], [0, 0], [True, False])
    assert found.truth.tolist() == [1, 0, 0] and found.ignored.tolist() == [False, True, True]
    assert found.found.tolist() == [False, True]


def test_each_object_may_have_a_threshold_of_its_own():
    near = [0, 0, 10, 4]  # IoU 0.4
    assert overlap(near, HERE) == 0.4
    found = match_detections([near] * 2, [0.9, 0.8], [0, 1], [HERE] * 2, [0, 1], [False] * 2, np.array([0.39, 0.41]))
    assert found.truth.tolist() == [0, -1]
