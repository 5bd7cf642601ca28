"""The rule that chooses, and the dense network by either arithmetic: the same answers."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from overfeat_tf.compute import execution
from overfeat_tf.compute import winograd as tiles
from overfeat_tf.compute.dense import feature_maps, find_windows, head_maps, run_heads
from overfeat_tf.compute.execution import Shape, choose_tiles, direct_cost, execution_of, winograd_cost
from overfeat_tf.compute.winograd import tiles_along
from overfeat_tf.models.model import Model
from overfeat_tf.network.backbone import Conv, ConvBackbone
from overfeat_tf.network.convnet import build
from overfeat_tf.network.presets import PRESETS, Preset
from overfeat_tf.options import InferenceOptions
from overfeat_tf.scan.features import extract

CONVS = (Conv(6, 5, stride=2, pool=2), Conv(12, 3, padding=1), Conv(24, 3), Conv(24, 3, padding=1, pool=2))
PRESET = Preset("plain", 41, ConvBackbone(CONVS), (6, 4), (5, 3), ((49, 49), (73, 81)), init_std=None)


@pytest.fixture
def everything_pays(monkeypatch):
    monkeypatch.setattr(execution, "MIN_SAVING", -1e15)
    monkeypatch.setattr(execution, "MIN_SPEEDUP", 0.0)
    monkeypatch.setattr("overfeat_tf.compute.dense.winograd_cost", lambda *_: 0.0)


def test_the_papers_networks_are_transformed_and_the_smallest_are_not():
    accurate = choose_tiles(PRESETS["accurate"])
    assert accurate["full7"] == accurate["regress7"] == 4  # F(4 x 4, 5 x 5)
    assert {"conv5", "conv6"} <= set(accurate) and "conv1" not in accurate  # of stride 2
    assert choose_tiles(PRESETS["fast"])["full6"] == 3  # F(3 x 3, 6 x 6)
    assert not choose_tiles(PRESETS["tiny"]) and not choose_tiles(PRESETS["thumbnail"])


def test_tiles_are_counted_offset_by_offset():
    # Table 5: of `accurate`'s six scales, all nine offset maps, 162 tiles of 4 x 4 windows.
    outputs = [(3, 3), (6, 9), (9, 15), (15, 21), (18, 24), (21, 30)]
    assert sum(tiles_along(down, 3, 4) * tiles_along(across, 3, 4) for down, across in outputs) == 162
    assert [tiles_along(n, 1, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_few_windows_stay_direct_and_many_do_not():
    shape = Shape(5, 3, 1024, 4096)
    assert winograd_cost(shape, 4, 9) > direct_cost(shape, 9)
    assert winograd_cost(shape, 4, 162) < 0.55 * direct_cost(shape, 1575)
    assert winograd_cost(shape, 4, 2 * 162) < 0.42 * direct_cost(shape, 2 * 1575)  # with flips


@pytest.mark.parametrize(
    ("fine", "context"),
    [
        (True, True),
        *(pytest.param(*each, marks=pytest.mark.long) for each in [(True, False), (False, False), (False, True)]),
    ],
)
def test_the_dense_network_is_the_same_by_either(everything_pays, fine, context):
    keras.utils.set_random_seed(2)
    network = build(replace(PRESET, window=57) if context else PRESET, 3, context=context)
    tiled = execution_of(network, "winograd")
    assert {"conv2", "conv3", "conv4", "full5", "regress5"} == set(tiled.sides)
    pixels = [tf.random.stateless_uniform([n, *size, 3], [n, 1], 0, 255) for n, size in ((2, (90, 77)), (1, (57, 99)))]

    def answers(name):
        maps = head_maps(network, pixels, name)
        windows = find_windows(network.preset, maps, fine)
        heads = [network.classifier, network.regressor]
        return [*maps, *run_heads(heads, windows, execution=execution_of(network, name))]

    direct, winograd = (tf.function(answers, autograph=False)(name) for name in ("direct", "winograd"))
    for found, expected in zip(winograd, direct, strict=True):
        assert found.shape == expected.shape and np.ptp(expected) > 0.01
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    for one, other in zip(feature_maps(network, pixels, "winograd"), feature_maps(network, pixels), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


def test_it_runs_tiles_and_not_only_says_so(everything_pays, monkeypatch):
    run, seen = [], tiles.run_tiles
    monkeypatch.setattr("overfeat_tf.compute.dense.run_tiles", lambda *args: run.append(args[-1]) or seen(*args))
    network = build(PRESET, 3)
    pixels = tf.random.stateless_uniform([1, 90, 77, 3], [1, 2], 0, 255)
    direct, winograd = (feature_maps(network, [pixels], name)[0] for name in ("direct", "winograd"))
    assert run == [execution_of(network, "winograd").sides[name] for name in ("conv2", "conv3", "conv4")]
    assert np.abs(direct - winograd).max() > 0  # of other roundings


def test_weights_that_change_are_followed(everything_pays):
    network = build(PRESET, 3)
    pixels = tf.random.stateless_uniform([1, 90, 77, 3], [1, 2], 0, 255)
    before = feature_maps(network, [pixels], "winograd")[0]
    network.features.get_layer("conv4").kernel.assign_add(tf.ones([3, 3, 24, 24]))
    after = feature_maps(network, [pixels], "winograd")[0]
    assert np.abs(after - before).max() > 1
    expected = feature_maps(network, [pixels])[0]
    np.testing.assert_allclose(after, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "call", ["detect", *(pytest.param(each, marks=pytest.mark.long) for each in ("localize", "classify"))]
)
def test_a_layers_output_and_every_inference_call_are_the_same(everything_pays, call):
    keras.utils.set_random_seed(4)
    network = build(PRESET, 3, background=True)
    network.classifier.layers[-1].kernel.assign(network.classifier.layers[-1].kernel * 300)
    network.regressor.layers[-1].bias.assign([0.1, 0.1, 0.9, 0.9])
    model = Model(network, ("a", "b", "c"), InferenceOptions(min_score=0.0, flips=True))
    other = model.with_options(arithmetic="winograd")
    images = np.random.default_rng(0).integers(0, 256, (2, 80, 90, 3), np.uint8)
    found, expected = getattr(other, call)(images), getattr(model, call)(images)
    assert call == "classify" or expected["num_detections"].min() > 0
    for key, values in expected.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(found[key], values, rtol=1e-4, atol=1e-4)
    for layer in ("full5", "scores", "conv3"):
        one, two = (
            extract(model.network, [tf.constant(images)], layer, arithmetic=name)[0] for name in ("direct", "winograd")
        )
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-5 * np.abs(one).max())


def test_an_unknown_arithmetic_is_refused():
    with pytest.raises(ValueError, match="expected arithmetic to be one of direct, winograd, bfloat16; got 'fast'"):
        InferenceOptions(arithmetic="fast")
    with pytest.raises(ValueError, match="expected an arithmetic of direct, winograd, bfloat16; got 'fast'"):
        execution_of(build("tiny", 2), "fast")
