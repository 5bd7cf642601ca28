"""Pascal VOC's and ILSVRC's average precision, against the development kits' loops over one global list."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from independent import by_the_kit

from training.evaluation.average_precision import IlsvrcDetection, VocDetection
from training.sources.record import Record

NAMES = ("a", "b", "c")
SIZE = (80, 120)


def answer(boxes, labels, scores) -> dict:
    ranking = np.argsort(-np.asarray(scores, float), kind="stable")
    return {
        "image_size": np.array(SIZE, np.int32),
        "num_detections": np.float32(len(labels)),
        "detection_boxes": np.asarray(boxes, np.float32).reshape(-1, 4)[ranking],
        "detection_scores": np.asarray(scores, np.float32)[ranking],
        "detection_classes": np.asarray(labels, np.float32)[ranking] + 1,
    }


def figures(kind, pairs) -> dict[str, float]:
    metric = kind(NAMES)
    for truth, found in pairs:
        metric.process(truth, found)
    return dict(metric.evaluate())


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
        pairs.append((truth, answer(np.concatenate([*near, places[count:]]), guessed, rng.random(len(guessed)))))
    return pairs


@settings(deadline=None, max_examples=60)
@given(sets())
def test_the_figures_are_the_kits_own(pairs):
    voc, ilsvrc = figures(VocDetection, pairs), figures(IlsvrcDetection, pairs)
    kit = np.array([by_the_kit(pairs, label, "voc") for label in range(3)])
    np.testing.assert_allclose([voc[f"voc_ap/{name}"] for name in NAMES], kit[:, 1], atol=1e-9)
    expected = np.nanmean(kit, axis=0) if np.isfinite(kit).any() else [np.nan, np.nan]
    np.testing.assert_allclose([voc["voc07_map"], voc["voc_map"]], expected, atol=1e-9)
    det = np.array([by_the_kit(pairs, label, "ilsvrc")[1] for label in range(3)])
    expected_map = np.nanmean(det) if np.isfinite(det).any() else np.nan
    np.testing.assert_allclose(ilsvrc["ilsvrc_map"], expected_map, atol=1e-9)


BOX = [0.1, 0.1, 0.5, 0.5]


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
    pair = Record.of_objects(b"", "", [small], [0]), answer([shifted], [0], [0.9])
    assert figures(IlsvrcDetection, [pair])["ilsvrc_map"] == 1 and figures(VocDetection, [pair])["voc_map"] == 0
