"""The presets against Tables 1, 3, 4 and 5 of the paper, and the arithmetic that follows from them."""

import gc
from dataclasses import replace
from math import prod

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from overfeat_tf.network.backbone import Conv, ConvBackbone
from overfeat_tf.network.convnet import build
from overfeat_tf.network.presets import PRESETS, Preset, get_preset

# Tables 1 and 3: kernel, stride, zero padding, channels, pool, map's side after convolution and after pooling.
TABLES = {
    "fast": [
        (11, 4, 0, 96, 2, 56, 28),
        (5, 1, 0, 256, 2, 24, 12),
        (3, 1, 1, 512, 1, 12, 12),
        (3, 1, 1, 1024, 1, 12, 12),
        (3, 1, 1, 1024, 2, 12, 6),
    ],
    "accurate": [
        (7, 2, 0, 96, 3, 108, 36),
        (7, 1, 0, 256, 2, 30, 15),
        (3, 1, 1, 512, 1, 15, 15),
        (3, 1, 1, 512, 1, 15, 15),
        (3, 1, 1, 1024, 1, 15, 15),
        (3, 1, 1, 1024, 3, 15, 5),
    ],
}

SMALL = Preset("small", 18, ConvBackbone((Conv(64, 4, pool=5),)), (200, 64), (8, 8), ((38, 38),))


@pytest.mark.parametrize("name", TABLES)
def test_layers_are_the_tables_rows(name):
    preset = PRESETS[name]
    rows = [(c.kernel, c.stride, c.padding, c.channels, c.pool) for c in preset.backbone.convs]
    assert rows == [row[:5] for row in TABLES[name]]
    sides = zip(preset.backbone.sides(preset.window), preset.backbone.layers, strict=True)
    assert [(side, side // layer.pool) for side, layer in sides] == [row[5:] for row in TABLES[name]]


@pytest.mark.parametrize(
    ("name", "window", "coarse", "fine", "kernel", "smallest", "full"),
    [("fast", 231, 32, 16, 6, 247, (3072, 4096)), ("accurate", 221, 36, 12, 5, 245, (4096, 4096))],
)
def test_windows_strides_and_heads(name, window, coarse, fine, kernel, smallest, full):
    preset = PRESETS[name]
    assert (preset.window, preset.coarse_stride, preset.fine_stride) == (window, coarse, fine)
    assert (preset.head_kernel, preset.smallest_input, preset.full) == (kernel, smallest, full)
    assert preset.regressor == (4096, 1024)  # 4.2
    assert (preset.dropout, preset.init_std) == (0.5, 0.01)  # 3.1


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_preset_fits_its_own_window(preset):
    assert preset.feature_side(preset.window) == preset.last_pool * preset.head_kernel
    for side in {side for scale in preset.scales for side in scale}:
        assert (side - preset.smallest_input) % preset.coarse_stride == 0
    areas = [height * width for height, width in preset.scales]
    assert areas == sorted(areas)


@pytest.mark.parametrize("name", ["tiny", "small", "thumbnail"])
@pytest.mark.parametrize("context", [False, True])
def test_what_is_said_of_a_network_is_what_is_built(name, context):
    network = build(name, 3, background=True, per_class=True, weights=False, context=context)
    backbone = network.preset.backbone
    said = {
        "features": backbone.layers,
        "classifier": network.preset.head("classifier", 4, context),
        "regressor": network.preset.head("regressor", 12, context),
    }
    network.blank_regressor()
    for part, model in network.parts.items():
        built = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
        assert [layer.name for layer in said[part]] == [layer.name for layer in built]
        assert [layer.parameters for layer in said[part]] == [layer.count_params() for layer in built]
    height, width = network.preset.scales[1][0], network.preset.window
    outputs = [network.features.get_layer(layer.name).output for layer in backbone.layers]
    shapes = keras.Model(network.features.input, outputs).compute_output_shape((1, height, width, 3))
    assert [shape[1:3] for shape in shapes] == backbone.map_sizes(height, width)
    assert backbone.channels == shapes[-1][3] and backbone.parameters == network.features.count_params()
    assert backbone.largest_map(height, width) == max(prod(shape[1:]) for shape in shapes)


# Table 4 says 145 M and 144 M parameters, 2810 M and 5369 M connections; exactly, by the tables' own arithmetic:
@pytest.mark.parametrize(
    ("name", "parameters", "connections"), [("fast", 145_920_872, 2801.4e6), ("accurate", 144_656_488, 5355.4e6)]
)
def test_a_built_network_has_table_4s_sizes(name, parameters, connections):
    preset = PRESETS[name]
    network = build(preset, 1000, weights=False)  # Table 4 does not count the regressor, which is not built yet
    parts = (network.features, network.classifier)
    assert sum(part.count_params() for part in parts) == parameters
    # A connection is a multiply-add: each weight once for every cell of its map.
    layers = [layer for part in parts for layer in part.layers if isinstance(layer, keras.layers.Conv2D)]
    cells = [side**2 for side in preset.backbone.sides(preset.window)] + [1, 1, 1]
    multiply_adds = sum(prod(layer.kernel.shape) * n for layer, n in zip(layers, cells, strict=True))
    assert multiply_adds == pytest.approx(connections, rel=2e-5)
    assert network.features.output_shape == (None, None, None, 1024)
    assert network.classifier.output_shape[-1] == 1000
    del network, parts, layers  # half a gigabyte, before the next one is built
    gc.collect()


def test_weights_begin_as_the_preset_says():
    keras.utils.set_random_seed(0)
    small = build(replace(SMALL, init_std=0.01), 7)  # 3.1: N(0, 0.01)
    he = build(replace(SMALL, init_std=None), 7)
    for network, hidden_std in ((small, 0.01), (he, (2 / (3 * 3 * 64)) ** 0.5)):
        hidden, last = network.classifier.layers[1].kernel.numpy(), network.classifier.layers[-1].kernel.numpy()
        assert hidden.std() == pytest.approx(hidden_std, rel=0.05)
        assert last.std() == pytest.approx(0.01, rel=0.1)
        assert abs(hidden.mean()) < hidden_std / 50


def test_dropout_is_on_the_two_hidden_full_layers_in_training_alone():
    network = build(replace(PRESETS["tiny"], dropout=0.5), 7)
    drops = [layer for layer in network.classifier.layers if isinstance(layer, keras.layers.Dropout)]
    assert [(layer.name, layer.rate) for layer in drops] == [("full5_dropout", 0.5), ("full6_dropout", 0.5)]
    names = [layer.name for layer in network.classifier.layers]
    assert names.index("full5_relu") < names.index("full5_dropout") < names.index("full6")  # after the rectifier
    pooled = tf.random.stateless_uniform([8, *network.classifier.get_layer("full5").kernel.shape[:3]], [1, 2])
    once, again = (network.classifier(pooled, training=True).numpy() for _ in range(2))
    assert np.abs(once - again).max() > 1e-3
    np.testing.assert_array_equal(network.classifier(pooled), network.classifier(pooled))
    assert not [layer for layer in network.regressor.layers if isinstance(layer, keras.layers.Dropout)]


def test_the_regressor_has_four_edges_or_four_for_each_class():
    assert build("tiny", 7).regressor.output_shape[-1] == 4
    per_class = build("tiny", 7, background=True, per_class=True)
    assert per_class.regressor.output_shape[-1] == 28
    last, hidden = per_class.regressor.layers[-1], build("tiny", 7).regressor.layers[1]
    assert last.kernel.shape == (1, 1, 64, 28)
    assert hidden.kernel.shape == (3, 3, 96, 128)


def test_a_regressor_is_there_when_asked_for_even_in_a_trace():
    network = build("tiny", 2)
    assert set(network.parts) == {"features", "classifier"}
    tf.function(lambda: network.regressor(tf.zeros([1, 3, 3, 96])), autograph=False)()
    assert set(network.parts) == {"features", "classifier", "regressor"}
    assert network.regressor is network.regressor and network.regressor.get_weights()[0].std() > 0


def test_an_input_too_small_for_a_kernel_has_an_empty_map():
    assert PRESETS["accurate"].feature_side(6) == 0
    assert PRESETS["fast"].feature_side(1) >= 0


def test_strides_multiply_over_layers():
    preset = replace(SMALL, backbone=ConvBackbone((Conv(1, 3, stride=3, pool=2), Conv(1, 3, stride=2, pool=5))))
    assert (preset.fine_stride, preset.coarse_stride, preset.last_pool) == (12, 60, 5)


def test_an_unknown_preset_names_the_nearest():
    assert get_preset("accurate") is PRESETS["accurate"]
    with pytest.raises(ValueError, match=r"one of fast, accurate, tiny.*; got 'acurate'; did you mean 'accurate'\?$"):
        get_preset("acurate")
    with pytest.raises(ValueError, match=r"got 'resnet50'$"):
        get_preset("resnet50")
    with pytest.raises(ValueError, match="did you mean 'fast'"):
        build("fsat", 10)


def test_a_network_needs_a_class():
    with pytest.raises(ValueError, match="at least one class; got 0"):
        build("tiny", 0)


# --- Windows, strides and sides ---------------------------------------------------------------------------------------

ACCURATE = PRESETS["accurate"]
# Table 5: input, unpooled map, pooled at each offset, classifier at each offset, interleaved. Scale 5 as corrected.
TABLE_5 = [
    ((245, 245), (17, 17), (5, 5), (1, 1), (3, 3)),
    ((281, 317), (20, 23), (6, 7), (2, 3), (6, 9)),
    ((317, 389), (23, 29), (7, 9), (3, 5), (9, 15)),
    ((389, 461), (29, 35), (9, 11), (5, 7), (15, 21)),
    ((425, 497), (32, 38), (10, 12), (6, 8), (18, 24)),
    ((461, 569), (35, 44), (11, 14), (7, 10), (21, 30)),
]


@pytest.mark.parametrize(("size", "unpooled", "pooled", "coarse", "fine"), TABLE_5)
def test_table_5(size, unpooled, pooled, coarse, fine):
    assert size in ACCURATE.scales
    for side, n, p, c, f in zip(size, unpooled, pooled, coarse, fine, strict=True):
        assert ACCURATE.feature_side(side) == n
        # Every offset gives the same map.
        assert [(n - offset) // ACCURATE.last_pool for offset in range(ACCURATE.last_pool)] == [p] * 3
        assert p - ACCURATE.head_kernel + 1 == c
        assert ACCURATE.window_count(side, fine=False) == c
        assert ACCURATE.window_count(side) == f


def test_table_5_has_1575_windows():
    assert ACCURATE.scales == tuple(row[0] for row in TABLE_5)
    assert sum(ACCURATE.window_count(h) * ACCURATE.window_count(w) for h, w in ACCURATE.scales) == 1575


@pytest.mark.parametrize(("name", "first", "step"), [("accurate", 245, 36), ("fast", 247, 32), ("tiny", 36, 8)])
def test_suiting_sides_are_those_that_give_every_offset_the_same_map(name, first, step):
    preset = PRESETS[name]

    def suits(side):
        sides = {(preset.feature_side(side) - offset) // preset.last_pool for offset in range(preset.last_pool)}
        # The last window ends at the edge: no pixel is left over for it.
        ends = (preset.window_count(side) - 1) * preset.fine_stride + preset.window == side
        return len(sides) == 1 and ends and preset.window_count(side) > 0

    assert [side for side in range(1, first + 6 * step) if suits(side)] == [first + k * step for k in range(6)]


@pytest.mark.parametrize("name", PRESETS)
@given(side=st.integers(0, 1000))
def test_windows_are_counted_by_laying_them_out(name, side):
    preset = PRESETS[name]
    for fine in (True, False):
        # Convolutions and pools drop what does not fill them, so the windows end where the map does, not the image.
        kernel = preset.last_pool * preset.head_kernel
        step = 1 if fine else preset.last_pool
        laid = len(range(0, preset.feature_side(side) - kernel + 1, step))
        assert preset.window_count(side, fine) == laid
        pixels = preset.stride(fine)
        assert laid == 0 or (laid - 1) * pixels + preset.window <= side
    assert preset.stride(fine=False) == preset.last_pool * preset.stride()
