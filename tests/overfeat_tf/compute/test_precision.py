"""bfloat16: near float32's answers, in maps and weights of half the bytes, and in nobody else's way."""

import os
from dataclasses import replace
from functools import partial
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from test_execution import PRESET

from overfeat_tf.compute import choice
from overfeat_tf.compute.choice import Choice, Trial, choose_arithmetic, choose_for_run, try_bfloat16
from overfeat_tf.compute.dense import feature_maps, find_windows, head_maps, run_heads
from overfeat_tf.compute.execution import execution_of
from overfeat_tf.compute.precision import in_bfloat16
from overfeat_tf.models.model import Model
from overfeat_tf.network.convnet import build
from overfeat_tf.scan.features import extract

NEAR = 0.02  # of the largest value: bfloat16 has 8 significant bits


@pytest.fixture(scope="module")
def chain():
    keras.utils.set_random_seed(2)
    return build(replace(PRESET, window=57), 3, context=True)


@pytest.fixture(scope="module")
def on_a_backbone(tmp_path_factory):
    """A network on a Keras model with depthwise convolutions, batch normalisation and a branch."""
    keras.utils.set_random_seed(3)
    x = pixels = keras.Input((None, None, 3))
    x = layers.Normalization(mean=[120.0] * 3, variance=[3600.0] * 3)(x)
    x = layers.Conv2D(16, 3, 2, "same", use_bias=False)(x)
    x = branch = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, 1, "same", use_bias=False)(x)
    x = layers.Add(name="joined")([layers.ReLU(6.0)(layers.BatchNormalization()(x)), branch])
    model = keras.Model(pixels, x)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_variance.assign(tf.random.uniform([16], 0.5, 1.5))
            layer.moving_mean.assign(tf.random.normal([16]))
    model.save(path := str(tmp_path_factory.mktemp("backbone") / "model.keras"))
    keras.utils.set_random_seed(3)  # the heads' weights do not depend on how the file is read
    network = build(path, 3, layer="joined")
    return network, network.regressor


def outputs(network, arithmetic):
    least = network.preset.smallest_input
    sizes = (least + 24, least), (least, least + 40)
    pixels = [tf.random.stateless_uniform([1, *size, 3], [size[0], 1], 0, 255) for size in sizes]
    windows = find_windows(network.preset, head_maps(network, pixels, arithmetic))
    return run_heads([network.classifier, network.regressor], windows, execution=execution_of(network, arithmetic))


@pytest.mark.parametrize("kind", ["chain", "on_a_backbone"])
def test_answers_are_near_and_those_of_the_stored_copy_are_the_same(request, kind):
    network = request.getfixturevalue(kind)
    network = network[0] if isinstance(network, tuple) else network
    exact, reduced = outputs(network, "direct"), outputs(network, "bfloat16")
    copy = in_bfloat16(network)
    for one, near, stored in zip(exact, reduced, outputs(copy, "bfloat16"), strict=True):
        assert near.dtype == tf.float32
        assert 0 < np.abs(one - near).max() < NEAR * np.abs(one).max()
        np.testing.assert_allclose(stored, near, rtol=0, atol=1e-4 * np.abs(one).max())
    maps = feature_maps(network, [tf.ones([1, 96, 96, 3])], "bfloat16")[0]
    assert maps.dtype == tf.bfloat16 and network.features(tf.ones([1, 96, 96, 3])).dtype == tf.float32
    for part, stored in copy.parts.items():
        kernels = [v for v in stored.variables if len(v.shape) > 1]
        exact_kernels = [v for v in kernels if v.dtype == "float32"]
        # Only the layer that gives scores or boxes stays.
        assert len(exact_kernels) == (part != "features") and len(kernels) > len(exact_kernels)
        assert [v.dtype for v in network.parts[part].variables if len(v.shape) > 1] == ["float32"] * len(kernels)
    statistics = [v for v in copy.features.variables if v.name.startswith("moving")]
    assert all(v.dtype == "float32" for v in statistics)


def test_weights_that_change_are_followed_and_any_layer_can_be_had(chain):
    pixels = tf.random.stateless_uniform([1, 90, 77, 3], [1, 2], 0, 255)
    before = feature_maps(chain, [pixels], "bfloat16")[0]
    kernel = chain.features.get_layer("conv4").kernel
    kernel.assign(kernel * 2)
    after = feature_maps(chain, [pixels], "bfloat16")[0]
    assert np.abs(tf.cast(after - before, tf.float32)).max() > 0.1
    for layer in ("pool4", "full5", "scores"):
        images = [tf.cast(pixels, tf.uint8)]
        one, two = (extract(chain, images, layer, arithmetic=name)[0] for name in ("direct", "bfloat16"))
        assert two.dtype == tf.float32
        np.testing.assert_allclose(one, two, rtol=0, atol=NEAR * np.abs(one).max())


@pytest.mark.parametrize(
    ("gain", "trial", "expected", "why"),
    [
        (1.0, None, "winograd", "multiplies 1.0 times as fast as float32"),
        (1.9, Trial(2.0, 0.001, 0.2), "bfloat16", "runs 2.0 times as fast as float32"),
        (1.9, Trial(1.4, 0.001, 0.2), "winograd", "by the cost model"),
        (1.9, Trial(2.0, 0.02, 0.2), "winograd", "allowed are 0.01 and 1"),
        (1.9, Trial(2.0, 0.001, 1.2), "winograd", "allowed are 0.01 and 1"),
    ],
)
def test_the_fastest_whose_answers_are_near_is_chosen(monkeypatch, gain, trial, expected, why):
    network = build(PRESET, 3, weights=False)
    monkeypatch.setattr(choice, "suits_this_machine", lambda: "winograd")
    monkeypatch.setattr(choice, "tiles_gain", lambda _: 1.5)
    monkeypatch.setattr(choice, "bfloat16_gain", lambda: gain)
    monkeypatch.setattr(choice, "try_bfloat16", lambda _: trial)
    assert choose_arithmetic([network])[0] == "winograd"  # too small to be measured
    monkeypatch.setattr(choice, "MIN_MULTIPLY_ADDS", 0)
    found = choose_arithmetic([network])
    assert found.arithmetic == expected and why in found.reason


def test_a_run_keeps_the_choice_until_its_weights_or_the_processor_change(monkeypatch, tmp_path):
    (tmp_path / "weights").mkdir()
    weights = tmp_path / "weights" / "classifier.weights.h5"
    weights.write_bytes(b"one")
    chosen = iter([Choice("bfloat16", "first"), Choice("direct", "second"), Choice("winograd", "third")])
    monkeypatch.setattr(choice, "choose_arithmetic", lambda _: next(chosen))
    assert [choose_for_run([], tmp_path) for _ in range(2)] == [Choice("bfloat16", "first")] * 2
    os.utime(weights, ns=(1, 1))
    assert [choose_for_run([], tmp_path).reason for _ in range(2)] == ["second"] * 2
    monkeypatch.setattr(choice, "processor", lambda: "another")
    assert choose_for_run([], tmp_path).reason == "third"


def test_a_trial_measures_time_scores_and_boxes(chain):
    assert chain.regressor is not None
    found = try_bfloat16(chain)
    assert found.gain > 0.05 and 0 < found.scores < 0.05 and 0 < found.pixels < 5
    bias = chain.classifier.layers[-1].bias
    before = bias.numpy()
    bias.assign([100.0, *before[1:]])  # a class that wins everywhere: no score differs, its odds do
    sure = try_bfloat16(chain).scores
    bias.assign(before)
    assert 0.1 * found.scores < sure < 10 * found.scores


def test_calls_are_alike_for_every_task():
    keras.utils.set_random_seed(4)
    model = Model(build(PRESET, 3, background=True), ("a", "b", "c")).with_options(min_score=0.0)
    images = np.random.default_rng(0).integers(0, 256, (1, 80, 90, 3), np.uint8)
    near = model.with_options(arithmetic="bfloat16")
    np.testing.assert_allclose(near.classify(images)["probs"], model.classify(images)["probs"], atol=0.01)
    one, two = (each.localize(images) for each in (model, near))
    np.testing.assert_allclose(one["detection_scores"], two["detection_scores"], atol=0.01)


@pytest.mark.parametrize("gain", [1.0, 4.0])
@pytest.mark.parametrize("times, chosen", [([1.0, 0.9], "float32"), ([1.0, 0.5], "mixed_bfloat16")])
def test_training_computes_in_what_its_gradients_are_faster_in(on_a_backbone, gain, times, chosen, monkeypatch):
    network, _ = on_a_backbone
    dtypes = []

    def run(calls):
        conv = network.backbone.layers[2]
        for call in calls:
            with mock.patch.object(conv, "call", wraps=conv.call) as traced:
                assert all(np.isfinite(each.numpy()) for each in call())
            dtypes.append(traced.call_args.args[0].dtype)
        return times

    monkeypatch.setattr(choice, "bfloat16_gain", lambda: gain)
    monkeypatch.setattr(choice, "fastest", run)
    before = [value.numpy() for value in network.features.variables]
    assert choice.choose_precision(network).arithmetic == (chosen if gain > 1 else "float32")
    assert dtypes == ([tf.float32, tf.bfloat16] if gain > 1 else [])
    for one, other in zip(before, network.features.variables, strict=True):
        np.testing.assert_array_equal(one, other.numpy())


def test_short_calls_are_timed_often_and_long_ones_three_times(monkeypatch):
    now, took = [0.0], {"short": 0.01, "middle": 0.1, "long": 5.0}
    monkeypatch.setattr(choice.time, "perf_counter", lambda: now[0])

    def timed(*names: str) -> tuple[list[float], int]:
        calls = []

        def call(name: str) -> tf.Tensor:
            calls.append(name)
            now[0] += took[name] * (3 if len(calls) <= len(names) else 1)  # the first call of each traces
            return tf.constant(0.0)

        return choice.fastest([partial(call, name) for name in names]), len(calls)

    assert timed("short", "short") == ([pytest.approx(0.01)] * 2, 2 * 21)
    assert timed("middle", "short") == ([pytest.approx(0.1), pytest.approx(0.01)], 2 * 11)
    assert timed("long", "long") == ([pytest.approx(5.0)] * 2, 2 * 4)
