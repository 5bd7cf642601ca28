"""The matcher of detections to ground truth against plain loops, and ILSVRC's errors as counting gives them."""

import numpy as np
import pytest
from answers import answer
from hypothesis import given, settings
from hypothesis import strategies as st
from independent import match_by_loops, overlap, random_boxes, random_pairs, record

from training.evaluation.metrics import IlsvrcErrors, Rows, box_iou, by_label, match_detections

EASY = [0.1, 0.1, 0.4, 0.4]

# --- Matching --------------------------------------------------------------------------------------------------------


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


# --- IlsvrcErrors ----------------------------------------------------------------------------------------------------


def counted(pairs) -> dict[str, float]:
    wrong = dict.fromkeys(("top1_error", "top5_error", "localization1_error", "localization5_error"), 0)
    images = [(truth, found) for truth, found in pairs if len(truth.labels)]
    for truth, found in images:
        for most in (1, 5):
            named = placed = False
            for i in range(min(most, int(found["num_detections"]))):
                for box, label in zip(truth.boxes, truth.labels, strict=True):
                    if label + 1 == found["detection_classes"][i]:
                        named = True
                        placed |= overlap(box, found["detection_boxes"][i]) >= 0.5
            wrong[f"top{most}_error"] += not named
            wrong[f"localization{most}_error"] += not placed
    return {name: count / len(images) for name, count in wrong.items()}


def test_iou_is_what_it_says():
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, 30)
    wanted = [[overlap(box, other) for other in boxes[10:]] for box in boxes[:20]]
    np.testing.assert_allclose(box_iou(boxes[:20], boxes[10:]), wanted, atol=1e-6)
    assert box_iou(boxes[0], np.zeros((2, 4))).tolist() == [[0, 0]]


def guess_errors(pairs) -> dict[str, float]:
    both, pairs = [IlsvrcErrors("top"), IlsvrcErrors("localization")], list(pairs)
    for metric in both:
        for pair in pairs:
            metric.process(*pair)
    return {name: error for metric in both for name, error in metric.evaluate()}


def guessing(seed: int, images: int):
    """Truths, and guesses in any order, some right, some wrong, few in the right place."""
    rng = np.random.default_rng(seed)
    for truth, found in random_pairs(seed, images):
        permutation = rng.permutation(int(found["num_detections"]))
        rows = {key: found[key][permutation] for key in ("detection_boxes", "detection_classes")}
        yield truth, answer(rows["detection_boxes"], rows["detection_classes"].astype(int) - 1)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_guesses_are_counted(seed, images):
    pairs = [*guessing(seed, images), (record([EASY], [0]), answer([EASY], [1]))]  # one object at least
    assert guess_errors(pairs) == pytest.approx(counted(pairs))


def test_five_guesses_do_better_than_one_and_places_worse_than_classes():
    errors = guess_errors(guessing(3, 200))
    assert 0 < errors["top5_error"] < errors["top1_error"] < errors["localization1_error"] < 1
    assert errors["top5_error"] < errors["localization5_error"] < errors["localization1_error"]


def test_only_the_first_five_guesses_count():
    truth, box = record([EASY], [2]), [EASY] * 6
    errors = []
    for labels in ([0, 0, 0, 0, 2, 0], [0, 0, 0, 0, 0, 2], []):
        errors.append(guess_errors([(truth, answer(box[: len(labels)], labels))]))
    assert [error["top5_error"] for error in errors] == [0, 1, 1]
    assert [error["localization5_error"] for error in errors] == [0, 1, 1]
    assert [error["top1_error"] for error in errors] == [1, 1, 1]


def test_images_without_objects_count_for_nothing():
    for kind, wanted in (("top", "objects"), ("localization", "boxes")):
        metric = IlsvrcErrors(kind)
        metric.process(record([], []), answer([EASY], [0]))
        with pytest.raises(ValueError, match=f"^expected images with {wanted} to score against; there are none$"):
            dict(metric.evaluate())
        metric.process(record([EASY], [0]), answer([EASY], [0]))
        assert dict(metric.evaluate())[f"{kind}1_error"] == 0


def test_rows_are_kept_in_order_and_parted_by_label_in_order():
    rows = Rows(label="i4", score="f8", box="4f8")
    rows.append(0, label=np.zeros(0), score=np.zeros(0), box=np.zeros((0, 4)))
    rows.append(3, label=np.array([2, 0, 2]), score=np.array([0.9, 0.8, 0.7]), box=np.arange(12.0).reshape(3, 4))
    rows.append(2, label=0, score=np.array([0.6, 0.5]), box=np.ones((2, 4)))
    table = rows.table()
    assert table["label"].tolist() == [2, 0, 2, 0, 0] and table["box"][2].tolist() == [8, 9, 10, 11]
    assert [part["score"].tolist() for part in by_label(table, 4)] == [[0.8, 0.6, 0.5], [], [0.9, 0.7], []]
    assert [len(part) for part in by_label(Rows(label="i4").table(), 2)] == [0, 0]
    assert table.dtype.itemsize == 44
