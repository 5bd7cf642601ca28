"""The dense scan against the same network run on one crop at a time (3.3), and its boxes against plain arithmetic."""

from dataclasses import replace
from fractions import Fraction
from functools import cache

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from overfeat_tf.network.backbone import Conv, ConvBackbone
from overfeat_tf.network.convnet import build
from overfeat_tf.network.presets import PRESETS, Preset
from overfeat_tf.options import InferenceOptions
from overfeat_tf.scan.dense_scan import scan
from overfeat_tf.scan.pyramid import draw_scale, fit_scale

POOL3 = (Conv(6, 3, pool=2), Conv(8, 3, pool=3))
POOL2 = (Conv(6, 5, stride=2, pool=2), Conv(8, 1, pool=2))
# Without padding a window sees nothing but its own pixels, so that a crop's answer must be the dense one.
BARE = {
    preset.name: preset
    for preset in (
        Preset("pool3", 18, ConvBackbone(POOL3), (10, 9), (7, 5), ((22, 22), (28, 40))),
        Preset("pool2", 19, ConvBackbone(POOL2), (10, 9), (7, 5), ((23, 31), (47, 39))),
    )
}
TINY = replace(PRESETS["tiny"], scales=((36, 52), (60, 44)))


@cache
def network_of(name):
    """Build a network whose answers vary from window to window."""
    keras.utils.set_random_seed(3)
    network = build(replace(BARE.get(name, TINY), init_std=None), 3, background=True)
    for head, gain in ((network.classifier, 100.0), (network.regressor, 30.0)):
        head.layers[-1].kernel.assign(head.layers[-1].kernel * gain)
    return network


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# --- Sizes -----------------------------------------------------------------------------------------------------------


def fitted(preset, scale, size):
    resized, canvas = fit_scale(preset, scale, tf.constant(size))
    return tuple(resized.numpy().tolist()), tuple(canvas.numpy().tolist())


@pytest.mark.parametrize("name", PRESETS)
def test_an_image_of_a_scales_own_aspect_gets_the_scale(name):
    preset = PRESETS[name]
    for height, width in preset.scales:
        for times in (1, 2, 5):
            assert fitted(preset, (height, width), (height * times, width * times)) == ((height, width),) * 2


def plain_fits(preset, area, ratio):
    """Give the (resized, canvas) that the rule allows for a side of sqrt(area * ratio) pixels, two where it ties."""
    square = Fraction(area) * ratio  # of the wanted side: squares are compared, so that all is exact
    half = Fraction(preset.coarse_stride, 2)
    canvases = [preset.smallest_input]
    while (canvases[-1] + half) ** 2 < square:
        canvases = [canvases[-1] + preset.coarse_stride]
    if (canvases[0] + half) ** 2 == square:
        canvases.append(canvases[0] + preset.coarse_stride)
    natural = next(n for n in range(1, 10**6) if (n + Fraction(1, 2)) ** 2 >= square)
    naturals = {natural, natural + 1} if (natural + Fraction(1, 2)) ** 2 == square else {natural}
    fits = set()
    for canvas in canvases:
        if square >= (canvas - half) ** 2:
            fits.add((canvas, canvas))
        if square <= (canvas - half) ** 2:
            fits |= {(n, canvas) for n in naturals}
    return fits


@settings(max_examples=60)
@given(name=st.sampled_from(list(PRESETS)), number=st.integers(0, 5), size=st.tuples(*[st.integers(1, 9000)] * 2))
@example(name="accurate", number=0, size=(1, 1))
@example(name="accurate", number=5, size=(1, 50))
@example(name="tiny", number=0, size=(50, 1))
@example(name="fast", number=3, size=(1, 5000))
@example(name="tiny", number=1, size=(5000, 1))
@example(name="tiny", number=1, size=(100, 169))  # the wanted height is 40, half way between 36 and 44
def test_sizes_follow_the_rule(name, number, size):
    preset = PRESETS[name]
    scale = preset.scales[number % len(preset.scales)]
    area = scale[0] * scale[1]
    aspect = min(max(Fraction(*size), Fraction(1, 64)), Fraction(64))
    resized, canvas = fitted(preset, scale, size)
    for found, ratio in zip(zip(resized, canvas, strict=True), (aspect, 1 / aspect), strict=True):
        assert found in plain_fits(preset, area, ratio)
    assert all(1 <= r <= c for r, c in zip(resized, canvas, strict=True))
    assert all((c - preset.smallest_input) % preset.coarse_stride == 0 for c in canvas)


def test_a_strip_keeps_its_shape_and_is_padded_with_the_mean():
    preset = PRESETS["tiny"]
    canvas, content = draw_scale(preset, preset.scales[0], tf.constant(random_image(4, 200)))
    assert tuple(content.numpy()) == (5, 252)  # 36 * 36 pixels, 1 to 50; 254.6 to the nearest of 36 + 8 k
    assert canvas.shape == (36, 252, 3)
    np.testing.assert_allclose(canvas[5:], preset.mean)
    assert np.abs(canvas[:5] - preset.mean).max() > 10


def test_an_image_of_the_scales_size_is_not_touched():
    image = random_image(*TINY.scales[0])
    canvas, content = draw_scale(TINY, TINY.scales[0], tf.constant(image))
    np.testing.assert_array_equal(canvas, image)
    assert tuple(content.numpy()) == TINY.scales[0]


# --- Windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("name", BARE)
def test_every_window_answers_as_its_crop_does_alone(name, number):
    network = network_of(name)
    preset = network.preset
    size = preset.scales[number - 1]
    image = random_image(*size)
    (dense,) = scan(network, tf.constant(image), InferenceOptions(scales=(number,)))
    step, window = preset.stride(), preset.window
    places = [
        (i * step, j * step) for i in range(preset.window_count(size[0])) for j in range(preset.window_count(size[1]))
    ]
    assert dense.logits.shape[:2] == tuple(preset.window_count(side) for side in size)
    crops = np.stack([image[y : y + window, x : x + window] for y, x in places]).astype(np.float32)
    pooled = tf.nn.max_pool2d(network.features(crops), preset.last_pool, preset.last_pool, "VALID")
    logits = network.classifier(pooled).numpy()
    assert logits.shape[1:3] == (1, 1)
    assert logits.std(axis=0).min() > 0.1  # windows differ: a shifted or shuffled map would not pass
    np.testing.assert_allclose(dense.logits, logits.reshape(dense.logits.shape), rtol=1e-4, atol=1e-4)
    # A regressor speaks of its crop in window sides; the image has it at the crop's place.
    edges = network.regressor(pooled).numpy().reshape(-1, 4)
    assert edges.std(axis=0).min() > 0.01
    plain = [(e * window + (y, x, y, x)) / (*size, *size) for e, (y, x) in zip(edges, places, strict=True)]
    np.testing.assert_allclose(np.reshape(dense.boxes, (-1, 4)), plain, rtol=1e-4, atol=1e-4)
    # The network that is trained on single windows is this one.
    dense = network.as_model(window)(crops)
    np.testing.assert_allclose(dense["scores"].numpy(), logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.reshape(dense["boxes"], (-1, 4)), edges, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("number", [1, 2])
def test_with_padding_a_window_answers_as_its_part_of_the_map_does_alone(number):
    network = network_of("tiny")
    size, side, pool = TINY.scales[number - 1], TINY.last_pool * TINY.head_kernel, TINY.last_pool
    image = random_image(*size)
    (dense,) = scan(network, tf.constant(image), InferenceOptions(scales=(number,)))
    maps = network.features(image[None].astype(np.float32)).numpy()[0]
    rows, columns = (n - side + 1 for n in maps.shape[:2])
    parts = np.stack([maps[i : i + side, j : j + side] for i in range(rows) for j in range(columns)])
    cells = parts.reshape(-1, TINY.head_kernel, pool, TINY.head_kernel, pool, maps.shape[2]).max(axis=(2, 4))
    logits = network.classifier(cells).numpy()
    assert logits.std(axis=0).min() > 0.1
    np.testing.assert_allclose(dense.logits, logits.reshape(rows, columns, -1), rtol=1e-4, atol=1e-4)
    edges = network.regressor(cells).numpy().reshape(rows, columns, 4)
    stride = 4  # tiny's, fine
    origins = np.array([[(stride * i, stride * j) * 2 for j in range(columns)] for i in range(rows)])
    np.testing.assert_allclose(dense.boxes[:, :, 0], (edges * 32 + origins) / (*size, *size), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["pool3", "pool2", "tiny"])
def test_coarse_windows_are_every_kth_of_the_fine_ones(name):
    network = network_of(name)
    pool = network.preset.last_pool
    image = tf.constant(random_image(70, 90))
    fine, coarse = (scan(network, image, InferenceOptions(fine=fine, flips=True)) for fine in (True, False))
    assert len(fine) == len(coarse) == 2 * len(network.preset.scales)
    for of_fine, of_coarse in zip(fine, coarse, strict=True):
        assert of_coarse.logits.shape[0] * pool == of_fine.logits.shape[0]  # the sizes suit every offset
        np.testing.assert_allclose(of_coarse.logits, of_fine.logits[::pool, ::pool], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(of_coarse.boxes, of_fine.boxes[::pool, ::pool], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fine", [True, False])
def test_the_whole_network_has_the_shapes_it_declares(fine):
    network = network_of("pool3")
    image = random_image(29, 41)  # sides that do not suit every offset
    dense = network.as_model(fine=fine)
    shapes = {key: value.shape for key, value in dense(image[None].astype(np.float32)).items()}
    counts = tuple(network.preset.window_count(side, fine) for side in (29, 41))
    assert shapes == {"scores": (1, *counts, 4), "boxes": (1, *counts, 4)}
    declared = {key: value.shape for key, value in network.as_model(29, fine).output.items()}
    assert declared == {key: (None, counts[0], counts[0], 4) for key in ("scores", "boxes")}


# --- Boxes in the image ----------------------------------------------------------------------------------------------


@cache
def network_that_says(edges):
    """Build a tiny network whose regressor gives the same edges, in window sides, at every window."""
    network = build(TINY, 3)
    last = network.regressor.layers[-1]
    last.kernel.assign(tf.zeros_like(last.kernel))
    last.bias.assign(edges)
    return network


EDGES = (0.25, -0.5, 0.75, 1.5)  # of 32 pixels: rows 8 to 24, columns -16 to 48


@pytest.mark.parametrize("fine", [True, False])
@pytest.mark.parametrize(
    ("size", "content", "canvas"),
    [
        ((36, 52), (36, 52), (36, 52)),  # as it is
        ((72, 104), (36, 52), (36, 52)),  # shrunk
        ((900, 10), (348, 5), (348, 36)),  # a strip, squeezed to 64 to 1, padded: 1872 pixels, 346.1 by 5.4
    ],
)
def test_edges_land_at_normalised_places_in_the_image(size, content, canvas, fine):
    network = network_that_says(EDGES)
    plain, mirrored = scan(network, tf.constant(random_image(*size)), InferenceOptions((1,), flips=True, fine=fine))
    step = 4 if fine else 8
    counts = tuple(len(range(0, side - 32 + 1, step)) for side in canvas)
    assert plain.boxes.shape == mirrored.boxes.shape == (*counts, 1, 4)
    for i, j in np.ndindex(counts):
        top, bottom = (step * i + 8) / content[0], (step * i + 24) / content[0]
        left, right = (step * j - 16) / content[1], (step * j + 48) / content[1]
        np.testing.assert_allclose(plain.boxes[i, j, 0], (top, left, bottom, right), rtol=1e-5, atol=1e-6)
        # What the mirrored view has its left edge at, the image has its right edge at, as far from its right side.
        np.testing.assert_allclose(mirrored.boxes[i, j, 0], (top, 1 - right, bottom, 1 - left), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(36, 52), (150, 110), (400, 11)])
def test_the_mirror_image_has_mirrored_boxes(size):
    network = network_of("tiny")
    image = random_image(*size)
    options = InferenceOptions(flips=True)
    scans = scan(network, tf.constant(image), options)
    of_mirror = scan(network, tf.constant(image[:, ::-1]), options)
    for ours, theirs in ((0, 1), (1, 0), (2, 3), (3, 2)):  # a scale's views change places
        np.testing.assert_allclose(scans[ours].logits, of_mirror[theirs].logits, rtol=1e-3, atol=1e-3)
        ymin, xmin, ymax, xmax = np.moveaxis(of_mirror[theirs].boxes.numpy(), -1, 0)
        mirrored = np.stack([ymin, 1 - xmax, ymax, 1 - xmin], axis=-1)
        np.testing.assert_allclose(scans[ours].boxes, mirrored, rtol=1e-3, atol=1e-3)
    assert np.abs(scans[0].logits - scans[1].logits).max() > 0.1  # the two views are not the same to the network


def test_without_boxes_or_flips_there_are_none():
    scans = scan(network_of("tiny"), tf.constant(random_image(40, 40)), InferenceOptions(), with_boxes=False)
    assert [s.boxes for s in scans] == [None, None]


@pytest.mark.parametrize("scales", [(0,), (1, 3), ()])
def test_a_scale_that_the_preset_does_not_have_is_refused(scales):
    with pytest.raises(
        ValueError, match=rf"expected scales of 'tiny' from 1 to 2; got \[{', '.join(map(str, scales))}\]"
    ):
        InferenceOptions(scales=scales).scale_sizes(TINY)


def test_a_box_told_by_centre_and_size_is_the_box_told_by_edges():
    top, left, bottom, right = edges = (0.1, 0.25, 0.5, 1.1)
    told = {
        "edges": edges,
        "center_size": ((top + bottom) / 2 - 0.5, (left + right) / 2 - 0.5, np.log(bottom - top), np.log(right - left)),
    }
    found = {}
    for form, numbers in told.items():
        network = build(TINY, 2, box_form=form)
        network.regressor.layers[-1].kernel.assign(tf.zeros_like(network.regressor.layers[-1].kernel))
        network.regressor.layers[-1].bias.assign(numbers)
        scans = scan(network, tf.constant(random_image(60, 44)), InferenceOptions(flips=True))
        found[form] = [one.boxes for one in scans]
    assert len(found["edges"]) == 4
    for ours, theirs in zip(found["center_size"], found["edges"], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    with pytest.raises(ValueError, match=r"^expected box_form to be one of edges, center_size; got 'corners'$"):
        build(TINY, 2, box_form="corners")
