"""Context (5): the halved view's map laid on the view's own, in loops; and that all paths through the network agree."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

import overfeat_tf as of
from overfeat_tf.network.backbone import Conv, ConvBackbone
from overfeat_tf.network.context import add_context, first_cell, halve
from overfeat_tf.network.convnet import build
from overfeat_tf.network.presets import PRESETS, Preset
from overfeat_tf.options import InferenceOptions
from overfeat_tf.scan.dense_scan import scan
from overfeat_tf.scan.pyramid import draw_scale

TINY = replace(PRESETS["tiny"], scales=((36, 52), (60, 44)), init_std=None)
ODD_ROWS = (Conv(5, 3, padding=1), Conv(7, 3, stride=2, pool=3))
ODD = Preset("odd", 41, ConvBackbone(ODD_ROWS), (6, 4), (5, 3), ((47, 53),))


def plain_context(preset, maps, lower):
    """Interpolate cell by cell, from the pixels that the cells look at: [n, m, C] and [p, q, C] to [n, m, 2 C]."""
    side, stride = preset.last_pool * preset.head_kernel, preset.fine_stride
    laid = np.zeros((*maps.shape[:2], lower.shape[2]))
    for at in np.ndindex(maps.shape[:2]):
        # A window of `side` cells is `window` pixels: its first cell looks at so many pixels from its edge.
        pixels = [preset.window / 2 - (side - 1) / 2 * stride + stride * i for i in at]
        for axis_weights in _corners(preset, pixels, lower.shape, side, stride):
            (i, a), (j, b) = axis_weights
            laid[at] += a * b * lower[i, j]
    return np.concatenate([maps, laid], axis=-1)


def _corners(preset, pixels, shape, side, stride):
    axes = []
    for pixel, count in zip(pixels, shape, strict=False):
        place = (pixel / 2 - preset.window / 2) / stride + (side - 1) / 2
        place = min(max(place, 0), count - 1)
        first = min(int(place), count - 1)
        second = min(first + 1, count - 1)
        axes.append([(first, 1 - (place - first)), (second, place - first)])
    return [(row, column) for row in axes[0] for column in axes[1]]


@pytest.mark.parametrize("preset", [TINY, ODD, PRESETS["accurate"], PRESETS["fast"]], ids=lambda preset: preset.name)
@pytest.mark.parametrize("size", [(0, 0), (3, 17), (24, 5)])
def test_the_halved_map_is_laid_on_the_same_places(preset, size):
    rng = np.random.default_rng(0)
    sides = [preset.window + n * preset.fine_stride for n in size]
    maps, lower = (
        rng.normal(size=(2, *(preset.feature_side(side // by) for side in sides), 3)).astype(np.float32)
        for by in (1, 2)
    )
    found = add_context(first_cell(preset), tf.constant(maps), tf.constant(lower)).numpy()
    for answer, own, below in zip(found, maps, lower, strict=True):
        np.testing.assert_allclose(answer, plain_context(preset, own, below), rtol=1e-4, atol=1e-5)


def test_a_spot_is_at_one_place_in_both_halves():
    keras.utils.set_random_seed(0)
    network = build(TINY, 2, context=True)
    head_maps = keras.Model(pixels := keras.Input((None, None, 3)), network.head_maps(pixels))
    plain = np.full((1, 132, 132, 3), 120, np.float32)
    for middle in ((40, 40), (52, 90), (96, 66)):
        spotted = plain.copy()
        spotted[0, middle[0] - 4 : middle[0] + 4, middle[1] - 4 : middle[1] + 4] = 255
        change = np.abs(head_maps(spotted) - head_maps(plain))[0]
        centres = []
        for half in np.split(change, 2, axis=-1):
            weight = half.sum(axis=-1)
            assert weight.max() > 0.01
            centres.append(
                [(weight.sum(axis=1 - axis) @ np.arange(weight.shape[axis])) / weight.sum() for axis in (0, 1)]
            )
        np.testing.assert_allclose(*centres, atol=0.75)  # of a cell, which is half as wide as one of the halved map


@pytest.mark.parametrize("options", [{}, {"fine": False, "flips": True}, {"scales": (2,)}, {"views": "ten"}])
def test_a_scan_answers_as_the_model_that_is_trained(options):
    keras.utils.set_random_seed(1)
    network = build(TINY, 3, background=True, context=True)
    for head, gain in ((network.classifier, 100.0), (network.regressor, 30.0)):
        head.layers[-1].kernel.assign(head.layers[-1].kernel * gain)
    image = tf.constant(np.random.default_rng(0).integers(0, 256, (70, 58, 3), np.uint8))
    chosen = InferenceOptions(**options)
    scans, dense = scan(network, image, chosen), network.as_model(fine=chosen.fine)
    if chosen.views == "ten":
        assert len(scans) == 10 and all(one.logits.shape == (1, 1, 4) for one in scans)
        return
    for number, size in enumerate(chosen.scale_sizes(TINY)):
        canvas, _ = draw_scale(TINY, size, image)
        expected = dense(canvas[None])["scores"][0]
        assert np.std(expected) > 0.1
        np.testing.assert_allclose(scans[number * (1 + chosen.flips)].logits, expected, rtol=1e-3, atol=1e-3)


def test_context_lets_a_window_see_farther_beyond_itself():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 100, 100, 3)).astype(np.float32)
    other = image.copy()
    other[:, :, 44:] = rng.integers(0, 256, (1, 100, 56, 3))  # 12 pixels right of the first window
    for context in (False, True):
        keras.utils.set_random_seed(0)
        dense = build(TINY, 2, context=context).as_model()
        a, b = (dense(pixels)["scores"][0, 0, 0].numpy() for pixels in (image, other))
        assert np.allclose(a, b, atol=1e-6) is not context


def test_without_context_nothing_is_larger_and_with_it_only_the_heads_first_layers():
    plain, wide = (build("tiny", 2, context=context) for context in (False, True))
    assert plain.features.count_params() == wide.features.count_params()
    for part in ("classifier", "regressor"):
        old, new = (getattr(network, part).get_weights() for network in (plain, wide))
        assert [w.shape for w in old[1:]] == [w.shape for w in new[1:]]
        assert new[0].shape[2] == 2 * old[0].shape[2]
    assert not any("context" in layer.name for layer in plain.as_model().layers)


def test_a_model_with_context_comes_back_from_disk_and_gives_features(tmp_path):
    keras.utils.set_random_seed(0)
    network = build("tiny", 2, background=True, context=True)
    model = of.Model(network, ("a", "b"), InferenceOptions(scales=(1, 2), min_score=0.0))
    model.save_weights(tmp_path / "weights")
    (tmp_path / "config.json").write_text(json.dumps({"model": model.config()}))
    loaded = of.load(tmp_path)
    assert loaded.network.context and loaded.config() == model.config()
    images = [np.random.default_rng(0).integers(0, 256, (50, 61, 3), np.uint8)]
    for key, value in model.detect(images).items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(loaded.detect(images)[key], value, rtol=1e-4, atol=1e-4)
    full, pooled = (loaded.extract_features(images, layer, fine=True)[0] for layer in ("full6", "pool4"))
    assert pooled.shape[-1] == 96 and full.shape == (5, 8, 128)
    first = loaded.extract_features(images, "scores", fine=True)[0][0, 0]
    dense = network.as_model()(images[0][None].astype(np.float32))["scores"][0, 0, 0]
    np.testing.assert_allclose(first, dense, rtol=1e-3, atol=1e-4)


def test_a_window_too_small_to_be_halved_is_refused():
    small = Preset("small5", 5, ConvBackbone((Conv(3, 4),)), (4, 4), (4, 4), ())
    build(small, 2)
    with pytest.raises(
        ValueError,
        match=r"^expected a window whose half still has features, for context; that of 'small5' is too small",
    ):
        build(small, 2, context=True)
    assert halve(tf.zeros([1, 7, 8, 3])).shape == (1, 3, 4, 3)
