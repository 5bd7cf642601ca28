"""Layers by tiles against the direct product in float64, window by window, for random sizes."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from overfeat_tf import tiles
from overfeat_tf.cook_toom import MOST_POINTS

CHANNELS, OUTPUTS = 6, 5
SIZES = [(m, r) for r in (2, 3, 5, 6, 7) for m in range(2, MOST_POINTS - r + 2)]


def directly(cells, kernel, apart):
    """Correlate cells [B, H, W, C] with a kernel [r, r, C, K] whose taps lie `apart`, by definition, in float64."""
    taps = len(kernel)
    down, across = (side - apart * (taps - 1) for side in cells.shape[1:3])
    found = np.zeros((len(cells), max(down, 0), max(across, 0), kernel.shape[-1]))
    for i, j in np.ndindex(*found.shape[1:3]):
        seen = cells[:, i : i + apart * taps : apart, j : j + apart * taps : apart]
        found[:, i, j] = np.tensordot(seen.astype(np.float64), kernel.astype(np.float64), axes=3)
    return found.reshape(-1, kernel.shape[-1])


def by_tiles(maps, kernels, apart, side):
    flat = tf.concat([tf.reshape(each, [-1, CHANNELS]) for each in maps], axis=0)
    laid = tiles.lay_tiles(tf.stack([tf.shape(each)[:3] for each in maps]), len(kernels[0]), apart, side)
    transformed = [tiles.TransformedKernel(tf.Variable(kernel), side) for kernel in kernels]
    return tiles.run_tiles(transformed, flat, laid)


@settings(max_examples=40, deadline=None)
@given(
    size=st.sampled_from(SIZES),
    apart=st.integers(1, 3),
    spares=st.lists(st.tuples(st.integers(-1, 12), st.integers(0, 12)), min_size=1, max_size=3),
    images=st.integers(1, 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_window_is_the_direct_product(size, apart, spares, images, seed):
    (side, taps), rng = size, np.random.default_rng(seed)
    reach = apart * (taps - 1)
    maps = [
        rng.normal(size=(images, reach + max(down, -reach), reach + across, CHANNELS)).astype(np.float32)
        for down, across in spares
    ]
    kernels = [rng.normal(size=(taps, taps, CHANNELS, width)).astype(np.float32) for width in (OUTPUTS, 3)]
    for found, kernel in zip(by_tiles(maps, kernels, apart, side), kernels, strict=True):
        expected = np.concatenate([directly(each, kernel, apart) for each in maps])
        assert found.shape == expected.shape
        # Of what could add up: outputs may cancel.
        most = np.abs(kernel).sum(axis=(0, 1, 2)).max() * max((np.abs(each).max(initial=0) for each in maps), default=0)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * most + 1e-12)


@pytest.mark.parametrize("limit", [1, 7, 30])
def test_many_tiles_are_run_in_pieces(monkeypatch, limit):
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(2, 25, 31, CHANNELS)).astype(np.float32)]
    kernel = rng.normal(size=(3, 3, CHANNELS, OUTPUTS)).astype(np.float32)
    monkeypatch.setattr(tiles, "TILE_BYTES", limit * 4 * 36 * (CHANNELS + OUTPUTS))
    (found,) = by_tiles(maps, [kernel], 2, 4)
    expected = directly(maps[0], kernel, 2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_weights_are_derived_when_made_and_shared_with_no_other():
    first, second = (tf.Variable(tf.random.stateless_normal([3, 3, 2, 4], [n, 1])) for n in (1, 2))
    kernels = [tiles.TransformedKernel(variable, 4) for variable in (first, second)]
    before = [tf.stack(kernel.places()).numpy() for kernel in kernels]
    assert before[0].shape == (36, 2, 4) and np.abs(before[0] - before[1]).max() > 0.1
    first.assign(second)
    np.testing.assert_array_equal(tf.stack(kernels[0].places()), before[0])


class Layer(tf.Module):
    """A layer alone, as an export has it."""

    def __init__(self, seed):
        super().__init__()
        self.kernel = tf.Variable(tf.random.stateless_normal([3, 3, CHANNELS, OUTPUTS], [seed, 1]))
        self.transformed = tiles.TransformedKernel(self.kernel, 4)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, CHANNELS])], autograph=False)
    def run(self, cells):
        laid = tiles.lay_tiles(tf.shape(cells)[None, :3], 3, 1, 4)
        return tiles.run_tiles([self.transformed], tf.reshape(cells, [-1, CHANNELS]), laid)[0]


def test_saved_ones_are_derived_when_loaded_each_from_its_own(tmp_path):
    cells = np.random.default_rng(0).normal(size=(1, 9, 8, CHANNELS)).astype(np.float32)
    layers = [Layer(seed) for seed in (1, 2)]
    for number, layer in enumerate(layers):
        tf.saved_model.save(layer, str(tmp_path / str(number)), signatures=layer.run)
        # What is written is the layer's own kernel alone.
        written = [size for _, size in tf.train.list_variables(str(tmp_path / str(number) / "variables" / "variables"))]
        assert written.count([3, 3, CHANNELS, OUTPUTS]) == 1 and [36, CHANNELS, OUTPUTS] not in written
    loaded = [tf.saved_model.load(str(tmp_path / str(number))) for number in (0, 1, 0)]
    expected = [directly(cells, layers[number].kernel.numpy(), 1) for number in (0, 1, 0)]
    for each, values in zip(loaded, expected, strict=True):
        np.testing.assert_allclose(each.run(cells), values, rtol=0, atol=1e-4)
    del loaded[0]
    np.testing.assert_allclose(loaded[-1].run(cells), expected[-1], rtol=0, atol=1e-4)
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        signature = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path / "1")).signature_def[
            "serving_default"
        ]
        ((_, asked),), ((_, answer),) = signature.inputs.items(), signature.outputs.items()
        found = session.run(answer.name, {asked.name: cells})
    np.testing.assert_allclose(found, expected[1], rtol=0, atol=1e-4)
