"""Average precision: COCO's as pycocotools gives it, VOC's and ILSVRC's as the development kits' loops do."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from answers import answer
from hypothesis import given, settings
from hypothesis import strategies as st
from independent import by_pycocotools, by_the_kit, random_boxes, random_pairs, record

from training.evaluation.average_precision import CocoDetection, IlsvrcDetection, VocDetection
from training.sources.record import Record

NAMES = ("a", "b", "c")
SIZE = (80, 120)
BOX, EASY, HARD = [0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9]


def figures(kind, pairs) -> dict[str, float]:
    metric = kind(NAMES)
    for truth, found in pairs:
        metric.process(truth, found)
    return dict(metric.evaluate())


# --- COCO ------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_cocos_figures_are_pycocotools_own(seed, images):
    pairs = list(random_pairs(seed, images))
    pairs.append((record([EASY], [0]), answer([EASY], [0])))  # one object at least
    with TemporaryDirectory() as folder:
        found, stats = figures(CocoDetection, pairs), by_pycocotools(pairs, NAMES, Path(folder))
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
    found, stats = figures(CocoDetection, pairs), by_pycocotools(pairs, NAMES, tmp_path)
    assert 0 < found["map"] < 0.5
    got = [found[name] for name in ("map", "map50", "map/area/medium")]
    assert got == pytest.approx(stats[[0, 1, 4]].tolist(), abs=1e-9)


def test_a_group_ignores_the_objects_and_the_false_detections_of_others():
    # 100 x 400 pixels: a bar of 4 x 300, a square of 40 x 40, and a difficult one of 20 x 20.
    bar, square, hard = [0.5, 0, 0.54, 0.75], [0, 0.1, 0.4, 0.2], [0.7, 0.5, 0.9, 0.55]
    truth = record([bar, square, hard], [0, 0, 0], difficult=[False, False, True])
    false_bar, false_square = [0.9, 0, 0.94, 0.75], [0, 0.6, 0.4, 0.7]
    found = figures(
        CocoDetection, [(truth, answer([false_square, bar, false_bar, hard, square], [0] * 5, size=(100, 400)))]
    )
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
    found = figures(CocoDetection, perfect)
    assert names < found.keys() and all(value == pytest.approx(1) or math.isnan(value) for value in found.values())
    assert not any(math.isnan(found[name]) for name in names)
    empty = figures(CocoDetection, [(truth, answer([], [])) for truth in truths])
    assert {name: 0.0 for name in found if not math.isnan(found[name])} == {
        name: value for name, value in empty.items() if not math.isnan(value)
    }


def test_a_class_without_objects_has_no_figure_and_does_not_count():
    truth = record([[0.1, 0.1, 0.5, 0.5]], [1])
    found = figures(CocoDetection, [(truth, answer([[0.1, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9]], [1, 2]))])
    assert [found["map"], found["ap50/b"]] == pytest.approx([1, 1])
    assert math.isnan(found["ap50/a"]) and math.isnan(found["ap50/c"])


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
    assert figures(CocoDetection, [(truth, answer(found, [0] * len(found)))])["map50"] == pytest.approx(expected)


def test_a_crowd_excuses_all_that_lie_in_it():
    truth = record([HARD, EASY], [0, 0], difficult=[True, False], crowd=[True, False])
    inside = [[0.5, 0.5, 0.7, 0.7], [0.7, 0.7, 0.9, 0.9], HARD]
    assert figures(CocoDetection, [(truth, answer([*inside, EASY], [0] * 4))])["map50"] == pytest.approx(1)


@pytest.mark.parametrize("truth", [record([], []), record([HARD], [0], difficult=[True])])
def test_a_set_without_objects_is_one_clear_error(truth):
    with pytest.raises(ValueError, match=r"^expected objects to score against; the 2 images have none$"):
        figures(CocoDetection, [(truth, answer([EASY], [0])), (record([], []), answer([], []))])


# --- VOC and ILSVRC --------------------------------------------------------------------------------------------------


@st.composite
def sets(draw):
    """Three images with objects, and detections near them, twice on them, and anywhere; no two score the same."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    pairs = []
    for _ in range(3):
        count = draw(st.integers(0, 4))
        first = rng.uniform(0, 0.6, (count + 3, 2))
        places = np.concatenate([first, first + rng.uniform(0.04, 0.4, (count + 3, 2))], axis=1).astype(np.float32)
        labels = rng.integers(0, 2, count)  # nothing is a c
        truth = Record.of_objects(b"", "", places[:count], labels, difficult=rng.random(count) < 0.3)
        near = [places[:count] + rng.normal(0, 0.02, (count, 4)) for _ in range(2)]
        guessed = np.concatenate([labels, labels, rng.integers(0, 3, 3)])
        pairs.append((truth, answer(np.concatenate([*near, places[count:]]), guessed, rng.random(len(guessed)), SIZE)))
    return pairs


@settings(deadline=None, max_examples=60)
@given(sets())
def test_vocs_and_ilsvrcs_figures_are_the_kits_own(pairs):
    voc, ilsvrc = figures(VocDetection, pairs), figures(IlsvrcDetection, pairs)
    kit = np.array([by_the_kit(pairs, label, "voc") for label in range(3)])
    np.testing.assert_allclose([voc[f"voc_ap/{name}"] for name in NAMES], kit[:, 1], atol=1e-9)
    expected = np.nanmean(kit, axis=0) if np.isfinite(kit).any() else [np.nan, np.nan]
    np.testing.assert_allclose([voc["voc07_map"], voc["voc_map"]], expected, atol=1e-9)
    det = np.array([by_the_kit(pairs, label, "ilsvrc")[1] for label in range(3)])
    expected_map = np.nanmean(det) if np.isfinite(det).any() else np.nan
    np.testing.assert_allclose(ilsvrc["ilsvrc_map"], expected_map, atol=1e-9)


def test_eleven_points_and_area_of_a_known_curve():
    truth = Record.of_objects(b"", "", [BOX, [0.6, 0.6, 0.9, 0.9]], [0, 0])
    found = answer([BOX, [0, 0.5, 0.1, 0.6], [0.6, 0.6, 0.9, 0.9]], [0, 0, 0], [0.9, 0.8, 0.7])
    got = figures(VocDetection, [(truth, found)])
    assert got["voc07_map"] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)  # right, wrong, right
    assert got["voc_map"] == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_a_second_find_is_wrong_and_a_difficult_object_excuses_any_number():
    truth = Record.of_objects(b"", "", [BOX, [0.6, 0.6, 0.9, 0.9]], [0, 0], difficult=[False, True])
    hard = [[0.6, 0.6, 0.9, 0.9]] * 3
    assert figures(VocDetection, [(truth, answer([*hard, BOX], [0] * 4, [0.9, 0.8, 0.7, 0.6]))])["voc_map"] == 1
    twice = answer([BOX, BOX], [0, 0], [0.9, 0.8])
    other = Record.of_objects(b"", "", [BOX], [0]), answer([BOX], [0], [0.1])
    assert figures(VocDetection, [(truth, twice), other])["voc_map"] == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_a_crowd_is_no_object_and_excuses_what_lies_in_it():
    truth = Record.of_objects(b"", "", [BOX, [0.5, 0.5, 1, 1]], [0, 0], crowd=[False, True], difficult=[False, True])
    found = answer([[0.6, 0.6, 0.7, 0.7], BOX], [0, 0], [0.9, 0.8])
    assert figures(IlsvrcDetection, [(truth, found)])["ilsvrc_map"] == 1


def test_ilsvrc_asks_less_of_small_objects():
    small = [0.5, 0.5, 0.5 + 10 / SIZE[0], 0.5 + 10 / SIZE[1]]  # 10 x 10 pixels: an IoU of 0.25 is enough
    shifted = np.add(small, np.array([0, 5.5, 0, 5.5]) / SIZE[1])  # 0.29
    pair = Record.of_objects(b"", "", [small], [0]), answer([shifted], [0], [0.9], SIZE)
    assert figures(IlsvrcDetection, [pair])["ilsvrc_map"] == 1 and figures(VocDetection, [pair])["voc_map"] == 0
