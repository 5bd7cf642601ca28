"""The map from accumulated scores to probabilities: in the graph as in numpy, monotone, kept with the model."""

import json

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from overfeat_tf.merge.accumulation import Merged
from overfeat_tf.merge.calibration import Calibration, displayed, relevant_options
from overfeat_tf.models import inference as tasks
from overfeat_tf.models.model import Model
from overfeat_tf.network.convnet import build
from overfeat_tf.options import InferenceOptions

KNOWN = Calibration(
    1.3,
    0.8,
    -2.0,
    threshold=0.4,
    accumulated_threshold=0.7,
    options=relevant_options(InferenceOptions(min_score=0.0, max_windows=60)),
)
weights = st.floats(0, 4)


def numpy_map(calibration, scores, boxes):
    shares = [scores[i] / sum(scores[j] for j in range(len(boxes)) if i == j or rivals(boxes[i], boxes[j]))
              for i in range(len(boxes))]  # fmt: skip
    odds = calibration.slope * np.log(scores) + calibration.contest * np.log(shares) + calibration.offset
    return 1 / (1 + np.exp(-odds))


def rivals(a, b):
    sides = [min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1)]
    shared = max(sides[0], 0) * max(sides[1], 0)
    return shared >= 0.4 * (sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - shared)


def some_boxes(count):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 0.5, (count, 2))
    return np.concatenate([corners, corners + rng.uniform(0.01, 0.5, (count, 2))], axis=1).astype(np.float32)


@pytest.mark.parametrize("several", [False, True])
def test_what_is_displayed_scores_enough_and_overlaps_nothing_better_that_is_displayed(several):
    boxes, scores = some_boxes(60), np.linspace(1, 0, 60).astype(np.float32)
    shown = []
    for number in range(60):
        if scores[number] >= 0.3 and (several or not any(rivals(boxes[number], boxes[other]) for other in shown)):
            shown.append(number)
    assert np.flatnonzero(displayed(boxes, scores, 0.3, several)).tolist() == shown
    assert several or len(shown) < 40
    assert displayed(boxes[:0], scores[:0], 0.3, several).shape == (0,)
    assert displayed(boxes[:1], scores[:1], float(scores[0]), several).all()


@settings(max_examples=20, deadline=None)
@given(weights, weights, st.floats(-4, 4))
def test_the_graph_computes_what_numpy_does_and_more_evidence_never_scores_less(slope, contest, offset):
    calibration = Calibration(slope, contest, offset)
    scores, boxes = np.geomspace(1e-2, 1e3, 30).astype(np.float32), some_boxes(30)
    found = calibration(tf.constant(scores), tf.constant(boxes)).numpy()
    np.testing.assert_allclose(found, numpy_map(calibration, scores.astype(float), boxes), rtol=1e-3, atol=1e-6)
    for i in (0, 15, 29):
        more = scores.copy()
        more[i] *= 1.5
        assert calibration(tf.constant(more), tf.constant(boxes)).numpy()[i] >= found[i] - 1e-7


def test_the_unit_map_is_the_uncalibrated_score():
    scores = np.array([0.0, 0.5, 1.0, 30.0], np.float32)
    found = Calibration()(tf.constant(scores), tf.constant(some_boxes(4)))
    np.testing.assert_allclose(found, scores / (1 + scores), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("values", [{"slope": -0.1}, {"contest": -1.0}, {"threshold": 1.5}])
def test_a_map_that_falls_and_a_threshold_that_is_no_score_are_refused(values):
    with pytest.raises(ValueError, match="expected"):
        Calibration(**values)


# Two boxes at one place, one beside them and one apart.
MERGED = Merged(
    tf.constant([[0.0, 0.0, 0.4, 0.4], [0.0, 0.0, 0.4, 0.45], [0.0, 0.2, 0.4, 0.7], [0.6, 0.6, 0.9, 0.9]]),
    tf.constant([3.0, 2.5, 2.0, 1.0]),
    tf.constant([1, 2, 1, 3]),
    tf.ones([4]),
)


def test_detections_are_ordered_by_what_they_are_answered_with():
    answer = tasks.best_detections(MERGED, InferenceOptions(max_detections=5), Calibration(1.0, 2.0, 0.0))
    assert answer.count == 4 and answer.classes.numpy()[4] == 0
    expected = numpy_map(Calibration(1.0, 2.0, 0.0), MERGED.scores.numpy().astype(float), MERGED.boxes.numpy())
    np.testing.assert_allclose(answer.scores.numpy()[:4], np.sort(expected)[::-1], rtol=1e-5)


def test_a_score_does_not_depend_on_how_many_are_answered():
    count = 130
    merged = Merged(
        tf.constant(some_boxes(count)),
        tf.constant(np.geomspace(9, 0.1, count), tf.float32),
        tf.range(1, count + 1),
        tf.ones([count]),
    )

    def answered(length):
        answer = tasks.best_detections(merged, InferenceOptions(max_detections=length), Calibration(1.0, 2.0, 0.0))
        return dict(zip(answer.classes.numpy(), answer.scores.numpy(), strict=True))

    hundred, every = answered(100), answered(count)
    for length in (1, 3, 50):
        assert list(answered(length).items()) == list(hundred.items())[:length]
    assert hundred == pytest.approx({number: every[number] for number in hundred})


def test_accumulated_scores_stay_to_be_had():
    answer = tasks.best_detections(MERGED, InferenceOptions(max_detections=5, scores="accumulated"), KNOWN)
    assert answer.classes.numpy().tolist() == [1, 2, 1, 3, 0]
    np.testing.assert_allclose(answer.scores, [3 / 4, 2.5 / 3.5, 2 / 3, 1 / 2, 0], rtol=1e-6)


def test_one_box_for_an_object_is_the_best_class():
    answer = tasks.best_detections(MERGED, InferenceOptions(max_detections=5, one_box_per_object=True), KNOWN)
    assert sorted(answer.classes.numpy().tolist()) == [0, 0, 1, 1, 3] and answer.count == 3


class TestModel:
    """Keeps the map and shows by it."""

    def test_the_configuration_keeps_it(self):
        model = self.model(KNOWN)
        again = Model.from_config(json.loads(json.dumps(model.config())))
        assert again.calibration == KNOWN and again.display_threshold == 0.4
        assert again.with_options(scores="accumulated").display_threshold == 0.7
        assert not again.calibration.changed_options(again.options)
        assert KNOWN.changed_options(
            InferenceOptions(scales=(1,), min_score=0.0, max_windows=50, arithmetic="winograd")
        ) == [
            "scales",
            "max_windows",
        ]

    def test_a_configuration_of_before_has_none(self):
        config = self.model(None).config()
        del config["calibration"], config["options"]["scores"]
        model = Model.from_config(config)
        assert model.calibration is None and model.display_threshold == 0.5

    def model(self, calibration):
        tf.keras.utils.set_random_seed(3)
        options = InferenceOptions(min_score=0.0, max_windows=60, max_detections=300)
        return Model(build("tiny", 2, background=True), ("a", "b"), options, calibration=calibration)
