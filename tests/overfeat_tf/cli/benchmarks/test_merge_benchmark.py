"""The merging benchmark: that both sides get the same predictions, and that it runs (on a small network)."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from overfeat_tf.cli.benchmarks import merging
from overfeat_tf.cli.benchmarks.harness import run_module
from overfeat_tf.cli.benchmarks.inputs import photographs
from overfeat_tf.cli.benchmarks.merging import Predictions, by_merging, by_suppression, compare
from overfeat_tf.models.inference import Candidates
from overfeat_tf.models.model import Model
from overfeat_tf.network.convnet import build
from overfeat_tf.network.presets import PRESETS
from overfeat_tf.options import InferenceOptions
from training.sources.formats.digits import DigitScenes


def candidates(boxes, scores, classes):
    return Candidates(
        tf.constant(boxes, tf.float32), tf.constant(scores), tf.constant(classes), tf.zeros([len(scores)], tf.int32)
    )


def test_merging_adds_where_suppression_takes_the_best():
    found = candidates([(0, 0, 0.5, 0.5), (0, 0, 0.5, 0.6), (0, 0, 0.5, 0.5)], [0.5, 0.75, 0.25], [1, 1, 3])
    size = tf.constant([100, 100])
    boxes, scores, classes = by_suppression(0.5, classes=3, max_detections=10)(found, size)
    np.testing.assert_allclose(boxes, [(0, 0, 0.5, 0.6), (0, 0, 0.5, 0.5)], rtol=1e-6)
    assert (scores.numpy().tolist(), classes.numpy().tolist()) == ([0.75, 0.25], [1, 3])
    boxes, scores, classes = by_merging(InferenceOptions())(found, size)
    np.testing.assert_allclose(boxes, [(0, 0, 0.5, 0.55), (0, 0, 0.5, 0.5)], rtol=1e-6)
    assert (scores.numpy().tolist(), classes.numpy().tolist()) == ([1.25, 0.25], [1, 3])


def test_a_small_detector_is_compared():
    network = build("tiny", 10, background=True)
    options = InferenceOptions(scales=(1, 2), top_k=10, min_score=0.0, max_windows=300)
    model = Model(network, tuple("0123456789"), options, tasks=("detection",))
    predictions = Predictions(model, DigitScenes(), "val", 2)
    assert predictions.count == 2 * model.options.max_windows
    found = compare(predictions, 10, ious=(0.5,))
    assert list(found) == ["merging", "suppression, IoU 0.5"]
    assert all(len(scored.times) == 2 and 0 <= scored.map50 <= 1 for scored in found.values())
    assert merging._table("digits, val", found).count("\n") == 3


def test_a_small_scan_is_measured(monkeypatch):
    monkeypatch.setattr(merging, "SIZES", (20, 60))
    preset = replace(PRESETS["tiny"], scales=PRESETS["tiny"].scales[:3])
    (ratios,) = merging._speed(preset, photographs()[0], 1)
    assert set(ratios) == {"shared", "own", "exponent"}
    assert ratios["shared"] > 0 and ratios["own"] > 0


@pytest.mark.long
def test_the_memory_of_many_boxes():
    (peak,) = run_module(merging.MODULE, 8000)
    assert 0.3 < peak < 2
