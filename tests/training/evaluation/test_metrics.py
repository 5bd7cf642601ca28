"""The field's figures: mAP as pycocotools gives it, and ILSVRC's errors as counting gives them."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from independent import by_pycocotools, overlap

from training.evaluation.average_precision import CocoDetection
from training.evaluation.matching import box_iou
from training.evaluation.metrics import IlsvrcErrors, Rows, by_label
from training.sources.record import Record

NAMES = ("a", "b", "c")
SIZES = ((100, 200), (460, 320), (90, 90))  # height, width


def record(boxes, labels, **flags) -> Record:
    return Record.of_objects(b"", "", boxes, labels, **flags)


def answer(boxes, labels, scores=None, size=(100, 200), padding=2) -> dict:
    """One image's rows of the contract's outputs; labels from 0."""
    count = len(labels)
    scores = np.linspace(1, 0.5, count) if scores is None else np.asarray(scores, float)
    return {
        "image_size": np.array(size, np.int32),
        "num_detections": np.float32(count),
        "detection_boxes": np.concatenate([np.reshape(boxes, (count, 4)), np.zeros((padding, 4))]).astype(np.float32),
        "detection_scores": np.concatenate([scores, np.zeros(padding)]).astype(np.float32),
        "detection_classes": np.concatenate([np.array(labels, int) + 1, np.zeros(padding)]).astype(np.float32),
    }


def figures(pairs, names=NAMES) -> dict[str, float]:
    metric = CocoDetection(names)
    for truth, found in pairs:
        metric.process(truth, found)
    return dict(metric.evaluate())


def random_boxes(rng, count: int) -> np.ndarray:
    first = rng.uniform(0, 0.6, (count, 2))
    return np.concatenate([first, first + rng.uniform(0.1, 0.4, (count, 2))], axis=1).astype(np.float32)


def random_pairs(seed: int, images: int = 12):
    """Truths, some of them crowds, and detections near them, in them or anywhere, of all three classes."""
    rng = np.random.default_rng(seed)
    for number in range(images):
        boxes, labels = random_boxes(rng, count := rng.integers(0, 5)), rng.integers(0, 3, count)
        crowd = rng.random(count) < 0.25
        centre = np.tile((boxes[:, :2] + boxes[:, 2:]) / 2, 2)
        shrunk = np.where(crowd[:, None], (boxes + centre) / 2, boxes)  # a quarter of a crowd is right by its own rule
        near = shrunk + rng.normal(0, 0.03, boxes.shape)
        places = np.concatenate([near, random_boxes(rng, 3)])
        named = np.concatenate([np.where(rng.random(count) < 0.8, labels, 0), rng.integers(0, 3, 3)])
        scores = np.sort(rng.random(len(named)).round(1))[::-1]  # some are equal
        yield record(boxes, labels, difficult=crowd, crowd=crowd), answer(places, named, scores, SIZES[number % 3])


# --- CocoDetection ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_the_figures_are_pycocotools_own(seed, images):
    pairs = list(random_pairs(seed, images))
    pairs.append((record([EASY], [0]), answer([EASY], [0])))  # one object at least
    with TemporaryDirectory() as folder:
        found, stats = figures(pairs), by_pycocotools(pairs, NAMES, Path(folder))
    np.testing.assert_allclose([found["map"], found["map50"], found["map75"]], stats[:3], atol=1e-9)
    by_area = np.nan_to_num([found[f"map/area/{name}"] for name in ("small", "medium", "large")], nan=-1.0)
    np.testing.assert_allclose(by_area, stats[3:6], atol=1e-9)
    np.testing.assert_allclose(np.nanmean([found[f"ap50/{name}"] for name in NAMES]), found["map50"])


def test_a_hundred_detections_of_an_image_count_whatever_images_are_scored_together(tmp_path):
    rng = np.random.default_rng(0)
    none, one = record([], []), record([EASY], [0])
    false = [answer(random_boxes(rng, n), [0] * n, np.linspace(0.9, 0.1, n)) for n in (60, 60, 130)]
    late = answer([*false[2]["detection_boxes"][:120], EASY], [0] * 121)  # right, but in place 121
    pairs = [(none, false[0]), (none, false[1]), (one, late), (none, false[2]), (one, answer([EASY], [0], [0.6]))]
    found, stats = figures(pairs), by_pycocotools(pairs, NAMES, tmp_path)
    assert 0 < found["map"] < 0.5
    got = [found[name] for name in ("map", "map50", "map/area/medium")]
    assert got == pytest.approx(stats[[0, 1, 4]].tolist(), abs=1e-9)


def test_a_group_ignores_the_objects_and_the_false_detections_of_others():
    # 100 x 400 pixels: a bar of 4 x 300, a square of 40 x 40, and a difficult one of 20 x 20.
    bar, square, hard = [0.5, 0, 0.54, 0.75], [0, 0.1, 0.4, 0.2], [0.7, 0.5, 0.9, 0.55]
    truth = record([bar, square, hard], [0, 0, 0], difficult=[False, False, True])
    false_bar, false_square = [0.9, 0, 0.94, 0.75], [0, 0.6, 0.4, 0.7]
    found = figures([(truth, answer([false_square, bar, false_bar, hard, square], [0] * 5, size=(100, 400)))])
    assert found["map50"] == pytest.approx(51 / 101 * 0.5 + 50 / 101 * 0.5)  # false, right, false, right: 1/2 and 2/4
    expected = {
        "share/above_2_3": 1.0,  # of the false ones only the bar is as long, and it scores less
        "share/below_1_8": 0.5,  # false_square, then square: a share of 0.1
        "aspect/above_3": 1.0,
        "aspect/below_1.5": 0.5,
        "area/medium": 0.5,  # all but the difficult one
    }
    assert {name: found[f"map50/{name}"] for name in expected} == pytest.approx(expected)
    for empty in ("area/small", "area/large", "share/1_8_to_1_3", "share/1_3_to_2_3", "aspect/1.5_to_3"):
        assert math.isnan(found[f"map50/{empty}"]) and math.isnan(found[f"map/{empty}"])


def test_perfect_answers_score_one_and_none_score_nothing():
    truths = [truth for truth, _ in random_pairs(0)]
    perfect = [(truth, answer(truth.boxes, truth.labels)) for truth in truths]
    names = {"map", "map50", "map75", "ap50/a", "ap50/b", "ap50/c"}
    found = figures(perfect)
    assert names < found.keys() and all(value == pytest.approx(1) or math.isnan(value) for value in found.values())
    assert not any(math.isnan(found[name]) for name in names)
    empty = figures([(truth, answer([], [])) for truth in truths])
    assert {name: 0.0 for name in found if not math.isnan(found[name])} == {
        name: value for name, value in empty.items() if not math.isnan(value)
    }


def test_a_class_without_objects_has_no_figure_and_does_not_count():
    truth = record([[0.1, 0.1, 0.5, 0.5]], [1])
    found = figures([(truth, answer([[0.1, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9]], [1, 2]))])
    assert [found["map"], found["ap50/b"]] == pytest.approx([1, 1])
    assert math.isnan(found["ap50/a"]) and math.isnan(found["ap50/c"])


EASY, HARD = [0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9]


@pytest.mark.parametrize(
    "found, expected",
    [
        ([EASY], 1.0),  # a difficult object missed is no miss
        ([HARD, EASY], 1.0),  # and found, no false alarm
        ([HARD], 0.0),  # nor a success
        ([[0.5, 0.1, 0.9, 0.4], EASY], 0.5),  # a false alarm elsewhere counts
        ([[0.6, 0.6, 0.7, 0.7], EASY], 0.5),  # also on a small part of it
    ],
)
def test_difficult_objects_do_not_count(found, expected):
    truth = record([HARD, EASY], [0, 0], difficult=[True, False])
    assert figures([(truth, answer(found, [0] * len(found)))])["map50"] == pytest.approx(expected)


def test_a_crowd_excuses_all_that_lie_in_it():
    truth = record([HARD, EASY], [0, 0], difficult=[True, False], crowd=[True, False])
    inside = [[0.5, 0.5, 0.7, 0.7], [0.7, 0.7, 0.9, 0.9], HARD]
    assert figures([(truth, answer([*inside, EASY], [0] * 4))])["map50"] == pytest.approx(1)


@pytest.mark.parametrize("truth", [record([], []), record([HARD], [0], difficult=[True])])
def test_a_set_without_objects_is_one_clear_error(truth):
    with pytest.raises(ValueError, match=r"^expected objects to score against; the 2 images have none$"):
        figures([(truth, answer([EASY], [0])), (record([], []), answer([], []))])


# --- IlsvrcErrors --------------------------------------------------------------------------------------------------


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
        permutation = rng.permutation(count := int(found["num_detections"]))
        rows = {key: found[key][permutation] for key in ("detection_boxes", "detection_classes")}
        yield truth, answer(rows["detection_boxes"], rows["detection_classes"].astype(int) - 1, padding=9 - count)


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


def test_a_class_without_a_box_counts_for_classification_alone():
    classes, places, detection = IlsvrcErrors("top"), IlsvrcErrors("localization"), CocoDetection(("a", "b"))
    for metric in (classes, places, detection):
        metric.process(Record.of_class(b"", "bare", 1), answer([EASY], [1]))
    assert dict(classes.evaluate()) == {"top1_error": 0, "top5_error": 0}
    with pytest.raises(ValueError, match=r"^expected images with boxes to score against; there are none$"):
        dict(places.evaluate())
    with pytest.raises(ValueError, match=r"^expected objects to score against; the 0 images have none$"):
        dict(detection.evaluate())
    for metric in (places, detection):
        metric.process(record([EASY], [0]), answer([EASY], [0]))
    assert dict(places.evaluate())["localization1_error"] == 0
    assert dict(detection.evaluate())["map50"] == pytest.approx(1)


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
