"""Minimal filtering against the correlation by its definition, and layers by tiles against the direct product."""

from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from overfeat_tf.compute import winograd as tiles
from overfeat_tf.compute.winograd import MOST_POINTS, exact_transforms, transforms

CHANNELS, OUTPUTS = 6, 5
SIZES = [(m, r) for r in (2, 3, 5, 6, 7) for m in range(2, MOST_POINTS - r + 2)]
TRANSFORMS = [(m, r) for r in range(2, MOST_POINTS) for m in range(2, MOST_POINTS - r + 2)]


@pytest.mark.parametrize("outputs, taps", TRANSFORMS)
def test_a_correlation_is_exact_in_fractions(outputs, taps):
    data, kernel, back = exact_transforms(outputs, taps)
    for tap in range(taps):  # bilinear: units on both sides say all
        for place in range(outputs + taps - 1):
            products = [row[tap] * column[place] for row, column in zip(kernel, data, strict=True)]
            found = [sum(a * b for a, b in zip(row, products, strict=True)) for row in back]
            assert found == [Fraction(output + tap == place) for output in range(outputs)]


@given(size=st.sampled_from(TRANSFORMS), seed=st.integers(0, 2**32 - 1))
def test_squares_are_correlated_in_float64(size, seed):
    outputs, taps = size
    side = outputs + taps - 1
    rng = np.random.default_rng(seed)
    cells, kernel = rng.normal(size=(side, side)), rng.normal(size=(taps, taps))
    square = transforms(outputs, taps).square()
    found = square.outputs @ ((square.taps @ kernel.ravel()) * (square.data @ cells.ravel()))
    expected = [(cells[i : i + taps, j : j + taps] * kernel).sum() for i in range(outputs) for j in range(outputs)]
    np.testing.assert_allclose(found, expected, atol=1e-12 * np.abs(expected).max() * 100)


@pytest.mark.parametrize("outputs, taps", [(1, 3), (3, 1), (4, 6)])
def test_other_sizes_are_refused(outputs, taps):
    with pytest.raises(ValueError, match=rf"expected F\(m, r\) of at most 8 points; got F\({outputs}, {taps}\)"):
        transforms(outputs, taps)


def directly(cells, kernel, dilation):
    """Correlate cells [B, H, W, C] with a kernel [r, r, C, K] whose taps lie `dilation`, by definition, in float64."""
    taps = len(kernel)
    down, across = (side - dilation * (taps - 1) for side in cells.shape[1:3])
    found = np.zeros((len(cells), max(down, 0), max(across, 0), kernel.shape[-1]))
    for i, j in np.ndindex(*found.shape[1:3]):
        seen = cells[:, i : i + dilation * taps : dilation, j : j + dilation * taps : dilation]
        found[:, i, j] = np.tensordot(seen.astype(np.float64), kernel.astype(np.float64), axes=3)
    return found.reshape(-1, kernel.shape[-1])


def by_tiles(maps, kernels, dilation, side):
    flat = tf.concat([tf.reshape(each, [-1, CHANNELS]) for each in maps], axis=0)
    laid = tiles.lay_tiles(tf.stack([tf.shape(each)[:3] for each in maps]), len(kernels[0]), dilation, side)
    return tiles.run_tiles([tf.constant(kernel) for kernel in kernels], flat, laid, side)


@settings(max_examples=40, deadline=None)
@given(
    size=st.sampled_from(SIZES),
    dilation=st.integers(1, 3),
    spares=st.lists(st.tuples(st.integers(-1, 12), st.integers(0, 12)), min_size=1, max_size=3),
    images=st.integers(1, 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_window_is_the_direct_product(size, dilation, spares, images, seed):
    (side, taps), rng = size, np.random.default_rng(seed)
    reach = dilation * (taps - 1)
    maps = [
        rng.normal(size=(images, reach + max(down, -reach), reach + across, CHANNELS)).astype(np.float32)
        for down, across in spares
    ]
    kernels = [rng.normal(size=(taps, taps, CHANNELS, width)).astype(np.float32) for width in (OUTPUTS, 3)]
    for found, kernel in zip(by_tiles(maps, kernels, dilation, side), kernels, strict=True):
        expected = np.concatenate([directly(each, kernel, dilation) for each in maps])
        assert found.shape == expected.shape
        # Of what could add up: outputs may cancel.
        most = np.abs(kernel).sum(axis=(0, 1, 2)).max() * max((np.abs(each).max(initial=0) for each in maps), default=0)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * most + 1e-12)


@pytest.mark.parametrize("limit", [1, 7, 30])
def test_many_tiles_are_run_in_pieces(monkeypatch, limit):
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(2, 25, 31, CHANNELS)).astype(np.float32)]
    kernel = rng.normal(size=(3, 3, CHANNELS, OUTPUTS)).astype(np.float32)
    monkeypatch.setattr(tiles, "TILE_BYTES", limit * 4 * 36 * CHANNELS)
    (found,) = by_tiles(maps, [kernel], 2, 4)
    expected = directly(maps[0], kernel, 2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("width", "blocks"), [(5, 1), (6, 2), (7, 7), (8, 2), (9, 3)])
def test_weights_are_transformed_in_blocks_of_outputs(monkeypatch, width, blocks):
    rng = np.random.default_rng(width)
    monkeypatch.setattr(tiles, "BLOCK", 5)
    monkeypatch.setattr(tiles, "LEAST_BLOCK", 1)
    assert tiles._block(width) * blocks == width
    maps = [rng.normal(size=(1, 9, 12, CHANNELS)).astype(np.float32)]
    kernel = rng.normal(size=(3, 3, CHANNELS, width)).astype(np.float32)
    (found,) = by_tiles(maps, [kernel], 1, 4)
    np.testing.assert_allclose(found, directly(maps[0], kernel, 1), rtol=0, atol=1e-4)


def test_blocks_are_not_made_too_small():
    assert [tiles._block(width) for width in (96, 512, 1000, 3072, 4096, 1021)] == [96, 512, 500, 512, 512, 1021]
