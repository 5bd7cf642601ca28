"""The heads at every window against the same heads on each window of one map alone, in plain numpy (3.3)."""

from dataclasses import replace
from functools import cache

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from overfeat_tf.compute import dense, execution
from overfeat_tf.compute.dense import find_windows, run_heads
from overfeat_tf.compute.execution import execution_of
from overfeat_tf.network.backbone import Conv, ConvBackbone
from overfeat_tf.network.convnet import build
from overfeat_tf.network.heads import Conv2D, DenseHead
from overfeat_tf.network.presets import PRESETS, Preset
from overfeat_tf.options import InferenceOptions
from overfeat_tf.scan.dense_scan import scan
from overfeat_tf.scan.pyramid import draw_scale

POOLS = {
    k: Preset(f"pool{k}", 8 * k, ConvBackbone(rows), (6, 4), (5, 3), (), init_std=None)
    for k in (1, 2, 3)
    for rows in [(Conv(5, 3, padding=1), Conv(7, 1, pool=k))]
}


@cache
def network_of(pool):
    keras.utils.set_random_seed(pool)
    network = build(POOLS[pool], 3)
    network.regressor.layers[-1].bias.assign([1.0, 2.0, 3.0, 4.0])
    return network


def plain_head(head, cells):
    """Run a head's layers on one window's cells [m, m, C], by their definition."""
    values = cells
    for layer in head.layers:
        if isinstance(layer, keras.layers.Conv2D):
            values = np.tensordot(values, layer.kernel.numpy(), axes=3)[None, None] + layer.bias.numpy()
        elif isinstance(layer, keras.layers.ReLU):
            values = np.maximum(values, 0)
    return values[0, 0]


def plain_windows(maps, preset, head, fine):
    """Pool and run each window of one map [n, m, C] alone; [h, w, D]."""
    pool, kernel = preset.last_pool, preset.head_kernel
    rows, columns = (n - pool * kernel + 1 for n in maps.shape[:2])
    step = 1 if fine else pool
    answers = [
        [
            plain_head(
                head,
                maps[i : i + pool * kernel, j : j + pool * kernel]
                .reshape(kernel, pool, kernel, pool, -1)
                .max(axis=(1, 3)),
            )
            for j in range(0, columns, step)
        ]
        for i in range(0, rows, step)
    ]
    return np.array(answers)


@settings(max_examples=25, deadline=None)
@given(
    pool=st.sampled_from([1, 2, 3]),
    sizes=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=3),
    images=st.integers(1, 2),
    fine=st.booleans(),
)
def test_every_window_answers_as_it_does_alone(pool, sizes, images, fine):
    network = network_of(pool)
    preset, least = network.preset, pool * network.preset.head_kernel
    rng = np.random.default_rng(len(sizes))
    maps = [rng.normal(0, 1, (images, least + h, least + w, 7)).astype(np.float32) for h, w in sizes]
    windows = find_windows(preset, [tf.constant(m) for m in maps], fine)
    heads = [network.classifier, network.regressor]
    for head, values in zip(heads, run_heads(heads, windows), strict=True):
        for answers, batch in zip(windows.split(values), maps, strict=True):
            expected = np.stack([plain_windows(m, preset, head, fine) for m in batch])
            np.testing.assert_allclose(answers, expected, rtol=1e-4, atol=1e-5)
            # What is trained computes the same.
            np.testing.assert_allclose(DenseHead.of(head, preset, fine)(batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fine", [True, False])
def test_many_windows_are_run_in_pieces(monkeypatch, fine):
    network = network_of(3)
    maps = [tf.random.stateless_normal([2, 40, 31, 7], [1, 2]), tf.random.stateless_normal([1, 25, 24, 7], [3, 4])]
    windows = find_windows(network.preset, maps, fine)
    (complete,) = run_heads([network.classifier], windows)
    assert len(np.unique(complete.numpy().round(5), axis=0)) > len(complete) // 2
    for rows in (1, 7, 50):
        monkeypatch.setattr(dense, "ROW_BYTES", rows * 4 * 7 * network.preset.head_kernel**2)
        (pieces,) = run_heads([network.classifier], windows)
        np.testing.assert_allclose(pieces, complete, rtol=1e-4, atol=1e-6)


def test_a_map_smaller_than_a_window_has_none():
    network = network_of(2)
    small, fitting = tf.zeros([1, 5, 30, 7]), tf.zeros([1, 16, 17, 7])
    windows = find_windows(network.preset, [small, fitting])
    parts = windows.split(run_heads([network.classifier], windows)[0])
    assert [part.shape for part in parts] == [(1, 0, 15, 3), (1, 1, 2, 3)]
    alone = find_windows(network.preset, [small])
    assert run_heads([network.classifier], alone)[0].shape == (0, 3)


def test_a_head_stops_at_a_layer():
    network = network_of(2)
    maps = tf.random.stateless_normal([1, 18, 17, 7], [1, 2])
    windows = find_windows(network.preset, [maps])
    hidden = keras.Model(network.classifier.input, network.classifier.get_layer("full4").output)
    (found,) = run_heads([network.classifier], windows, until="full4")
    assert found.numpy().min() < 0
    np.testing.assert_allclose(
        windows.split(found)[0], DenseHead.of(hidden, network.preset)(maps), rtol=1e-4, atol=1e-5
    )


def with_fewer_channels(preset, part):
    """Divide the channels of every hidden layer; windows, strides and kernels stay."""
    backbone = replace(
        preset.backbone,
        convs=tuple(replace(row, channels=row.channels // part) for row in preset.backbone.convs),
    )
    full, regressor = (tuple(n // part for n in channels) for channels in (preset.full, preset.regressor))
    return replace(preset, backbone=backbone, full=full, regressor=regressor)


@pytest.mark.parametrize(
    ("name", "part"),
    [("accurate", 8), *(pytest.param(name, 1, marks=pytest.mark.long) for name in ("fast", "accurate"))],
)
def test_the_papers_networks_answer_for_an_image_as_their_windows_do(name, part, monkeypatch):
    preset = replace(PRESETS[name], init_std=None)  # N(0, 0.01) leaves next to nothing of an image after nine layers
    if part > 1:  # the layers that are products of all maps stay so
        preset = with_fewer_channels(preset, part)
        monkeypatch.setattr("overfeat_tf.compute.execution.WIDE", execution.WIDE // part**2)
    keras.utils.set_random_seed(1)
    network = build(preset, 20)
    image = np.random.default_rng(0).integers(0, 256, (461, 569, 3), np.uint8)
    scans = scan(network, tf.constant(image), InferenceOptions(), with_boxes=False)
    assert len(scans) == 6
    # The largest scale: its corners, and a window in the middle.
    canvas, _ = draw_scale(preset, preset.scales[-1], tf.constant(image))
    maps = network.features(canvas[None]).numpy()[0]
    side, pool, kernel = preset.last_pool * preset.head_kernel, preset.last_pool, preset.head_kernel
    rows, columns = scans[-1].logits.shape[:2]
    assert (rows, columns) == tuple(preset.window_count(n) for n in canvas.shape[:2])
    for i, j in [(0, 0), (0, columns - 1), (rows - 1, columns - 1), (rows // 2, 5)]:
        cells = maps[i : i + side, j : j + side].reshape(kernel, pool, kernel, pool, -1).max(axis=(1, 3))
        expected = plain_head(network.classifier, cells)
        assert expected.std() > 1e-4
        scale = np.abs(expected).max()
        np.testing.assert_allclose(scans[-1].logits[i, j], expected, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("wide", [1, 2_000, 5_000])
def test_wide_feature_layers_are_products_of_all_maps(monkeypatch, wide):
    convs = (Conv(6, 5, stride=2, pool=2), Conv(12, 3, padding=1), Conv(24, 3), Conv(24, 3, padding=1, pool=2))
    keras.utils.set_random_seed(2)
    network = build(Preset("wide", 41, ConvBackbone(convs), (6, 4), (5, 3), (), init_std=None), 3)
    monkeypatch.setattr("overfeat_tf.compute.execution.WIDE", wide)
    pixels = [tf.random.stateless_uniform([n, *size, 3], [n, 1], 0, 255) for n, size in ((2, (60, 47)), (1, (41, 90)))]
    maps = tf.function(lambda: dense.feature_maps(network, pixels), autograph=False)()
    assert len(execution_of(network, "direct").tail) == {1: 8, 2_000: 5, 5_000: 3}[wide]
    for found, shown in zip(maps, pixels, strict=True):
        expected = network.features(shown)
        assert found.shape == expected.shape and np.ptp(expected) > 0.1
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel, shape", [(3, (3, 3)), (3, (5, 4)), (1, (1, 1)), (1, (4, 6))])
def test_a_full_layer_is_the_convolution_and_so_are_its_gradients(kernel, shape):
    maps = tf.random.stateless_normal([2, *shape, 5], [1, 2])
    layer, plain = Conv2D(7, kernel), keras.layers.Conv2D(7, kernel)
    plain.build(maps.shape)
    layer.build(maps.shape)
    plain.set_weights([tf.random.stateless_normal(w.shape, [3, 4]) for w in layer.weights])
    layer.set_weights(plain.get_weights())
    found = []
    for each in (layer, plain):
        with tf.GradientTape() as tape:
            tape.watch(maps)
            outputs = each(maps)
            loss = tf.reduce_sum(tf.sin(outputs))
        found.append([outputs, *tape.gradient(loss, [maps, *(w.value for w in each.weights)])])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
