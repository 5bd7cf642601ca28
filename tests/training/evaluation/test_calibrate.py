"""The fit of a detector's scores recovers a known map and survives odd data; the calibration error is as defined."""

import logging
import math

import numpy as np
import pytest
from answers import answer
from hypothesis import given
from hypothesis import strategies as st
from small_source import few_digits

from overfeat_tf.options import InferenceOptions
from training.evaluation.calibration import Reliability, calibrate, fit_calibration
from training.sources.record import Record


def synthetic(count, slope, contest, offset, seed=0):
    """Draw evidence, and what is right with the probabilities of a known map."""
    rng = np.random.default_rng(seed)
    scores, shares = np.exp(rng.normal(1, 1.5, count)), rng.uniform(0.05, 1, count)
    chances = 1 / (1 + np.exp(-(slope * np.log(scores) + contest * np.log(shares) + offset)))
    return scores, shares, rng.uniform(size=count) < chances, chances


def chances_of(calibration, scores, shares):
    odds = calibration.slope * np.log(scores) + calibration.contest * np.log(shares) + calibration.offset
    return 1 / (1 + np.exp(-odds))


def test_a_known_map_is_recovered():
    scores, shares, right, _ = synthetic(20_000, 2.0, 1.5, -2.5)
    fitted = fit_calibration(scores, shares, right, int(right.sum()))
    assert (fitted.slope, fitted.contest, fitted.offset) == pytest.approx((2.0, 1.5, -2.5), abs=0.1)
    assert fitted.detections == 20_000


@pytest.mark.parametrize("seed", range(3))
def test_sixty_images_worth_of_detections_are_enough(seed):
    scores, shares, right, _ = synthetic(400, 2.5, 2.0, -2.5, seed)
    fitted = fit_calibration(scores, shares, right, int(right.sum() * 1.1))
    scores, shares, right, chances = synthetic(20_000, 2.5, 2.0, -2.5, seed + 10)
    assert np.abs(chances_of(fitted, scores, shares) - chances).mean() < 0.04
    shown, objects = chances_of(fitted, scores, shares) >= fitted.threshold, right.sum()
    ranking = np.argsort(-chances)
    best = (2 * np.cumsum(right[ranking]) / (np.arange(1, len(ranking) + 1) + objects)).max()
    assert 2 * (right & shown).sum() / (shown.sum() + objects) > best - 0.02


def test_where_few_boxes_are_right_the_fit_still_converges():
    for seed in range(4):  # whole steps of Newton's method jump to and fro for ever on most of these
        scores, shares, right, _ = synthetic(900, 2.5, 2.0, -8.0, seed)
        fitted = fit_calibration(scores, shares, right, int(right.sum()))
        assert chances_of(fitted, scores, shares).mean() == pytest.approx(right.mean(), abs=0.01)


@pytest.mark.parametrize("right", [[True], [False], [True] * 5, [False] * 5, [True, False, True, False, False]])
def test_few_detections_all_right_or_all_wrong_give_a_finite_rising_map(right):
    scores = np.linspace(0.3, 3, len(right))  # where some are right and some wrong, more evidence speaks against them
    fitted = fit_calibration(scores, np.ones(len(right)), np.array(right), 4)
    chances = chances_of(fitted, scores, np.ones(len(right)))
    assert np.isfinite(chances).all() and (np.diff(chances) > 0).all() and fitted.contest >= 0
    assert 0 < fitted.threshold < 1 and 0 < fitted.accumulated_threshold < 1
    assert all(right) <= (chances.mean() > 0.5) and any(right) >= (chances.mean() > 0.5)


def test_evidence_that_speaks_against_a_box_is_left_aside():
    scores, shares, right, _ = synthetic(2000, 1.5, -2.0, 0.0)
    fitted = fit_calibration(scores, shares, right, 1000)
    assert fitted.contest == 0 and fitted.slope > 1


class Answerer:
    """Answers with what it is given, as a finished detector would."""

    options, calibration = InferenceOptions(), None

    def __init__(self, boxes=0):
        self._boxes, self.changes = boxes, {}

    def with_options(self, **changes):
        self.changes = changes
        return self

    def detect(self, images):
        n, m = len(images), self._boxes
        return {
            "num_detections": np.full(n, float(m)),
            "detection_boxes": np.tile(np.float32([0, 0, 1, 1]), (n, m, 1)),
            "detection_scores": np.full((n, m), 0.8, np.float32),
            "detection_classes": np.ones((n, m), np.float32),
        }


def test_it_is_fitted_on_so_many_images_and_knows_its_options():
    fitted = calibrate(Answerer(1), few_digits(4, 9), "val", images=5)
    assert (fitted.images, fitted.detections) == (5, 5)
    assert fitted.options["min_score"] == InferenceOptions().min_score and "scores" not in fitted.options
    assert fitted == calibrate(Answerer(1), few_digits(4, 9), "val", images=5)


def test_boxes_that_an_answer_leaves_out_for_a_better_one_are_fitted_too():
    detector = Answerer(1)
    detector.options = InferenceOptions(one_box_per_object=True)
    assert calibrate(detector, few_digits(4, 2), "val").detections == 2
    assert detector.changes == {"scores": "accumulated", "one_box_per_object": False, "max_detections": 100}


@pytest.mark.parametrize("split", ["elsewhere", "val"], ids=["no split", "no detections"])
def test_without_a_split_or_detections_there_is_none_and_one_line_says_so(split, caplog):
    with caplog.at_level(logging.WARNING):
        assert calibrate(Answerer(), few_digits(4, 3), split) is None
    (line,) = caplog.messages
    assert line.startswith("scores are not calibrated: ") and f"'{split}'" in line


# --- Reliability -----------------------------------------------------------------------------------------------------


def error_by_loops(scores, right) -> float:
    error = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = [i for i, s in enumerate(scores) if low <= s < high or (s == 1.0 and number == 14)]
        if inside:
            gap = sum(scores[i] for i in inside) / len(inside) - sum(right[i] for i in inside) / len(inside)
            error += len(inside) / len(scores) * abs(gap)
    return error


# Apart from the bins' edges, on which floating point decides.
SCORES = st.integers(0, 999).map(lambda n: (n + 0.5) / 1000) | st.sampled_from((0.0, 1.0))


@given(st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=60), st.integers(0, 60))
def test_the_error_is_that_of_plain_loops_in_any_number_of_parts(pairs, cut):
    scores, right = (np.array(column) for column in zip(*pairs, strict=True))
    metric = Reliability()
    for part in (slice(cut), slice(cut, None)):
        metric.add(scores[part], right[part])
    assert dict(metric.evaluate())["calibration_error"] == pytest.approx(error_by_loops(scores, right), abs=1e-12)


def test_a_detection_is_right_once_and_difficult_objects_do_not_count():
    here, there = [0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9]
    truth = Record.of_objects(b"", "", [here, there], [0, 0], difficult=[False, True])
    found = answer([here, here, there, here], [0, 0, 0, 1], [0.95, 0.94, 0.9, 0.25])
    metric = Reliability()
    metric.process(truth, found)
    figures = dict(metric.evaluate())
    # 0.95 is right, 0.94 (the same again) and 0.25 (another class) are wrong, 0.9 does not count.
    row = [figures[f"reliability/14/{kind}"] for kind in ("count", "score", "right")]
    assert row == pytest.approx([2, 0.945, 0.5])
    assert figures["reliability/03/count"] == 1 and figures["reliability/13/count"] == 0
    assert math.isnan(figures["reliability/13/score"]) and math.isnan(figures["reliability/13/right"])
    assert figures["calibration_error"] == pytest.approx((2 * 0.445 + 0.25) / 3)
    assert math.isnan(dict(Reliability().evaluate())["calibration_error"])
