"""Offset pooling against loops over offsets, windows and cells (3.3, Fig. 3)."""

import numpy as np
import pytest

from overfeat_tf.network.heads import interleave, offset_max_pool


def random_maps(batch, height, width, channels=3):
    return np.random.default_rng(height * 100 + width).normal(size=(batch, height, width, channels)).astype(np.float32)


def plain_pool(maps, pool, top=0, left=0):
    """Pool one map [n, m, C] from an offset without overlap, cell by cell; what does not fill a cell is dropped."""
    rows, columns = (maps.shape[0] - top) // pool, (maps.shape[1] - left) // pool
    pooled = np.zeros((rows, columns, maps.shape[2]), np.float32)
    for i in range(rows):
        for j in range(columns):
            cell = maps[top + i * pool : top + (i + 1) * pool, left + j * pool : left + (j + 1) * pool]
            pooled[i, j] = cell.max(axis=(0, 1))
    return pooled


def plain_head(cells, weights):
    """Apply a head with weights [m, m, C, D] to the pooled cells [m, m, C] of one window."""
    return np.einsum("yxc,yxcd->d", cells, weights)


def slide(pooled, weights):
    """Slide that head over maps [B, p, q, C], as a convolution would."""
    kernel = weights.shape[0]
    outputs = np.zeros((len(pooled), pooled.shape[1] - kernel + 1, pooled.shape[2] - kernel + 1, weights.shape[3]))
    for b, i, j in np.ndindex(outputs.shape[:3]):
        outputs[b, i, j] = plain_head(pooled[b, i : i + kernel, j : j + kernel], weights)
    return outputs.astype(np.float32)


@pytest.mark.parametrize("pool", [1, 2, 3])
@pytest.mark.parametrize("height", [3, 6, 7, 8])
@pytest.mark.parametrize("width", [5, 9])
def test_each_offset_is_pooled_as_by_itself(pool, height, width):
    maps = random_maps(2, height, width)
    pooled = np.asarray(offset_max_pool(maps, pool))
    pooled = pooled.reshape(pool, pool, 2, *pooled.shape[1:])
    assert pooled.shape[3:5] == (height // pool, width // pool)  # the size of offset 0's map, which is the largest
    for top, left, b in np.ndindex(pool, pool, 2):
        plain = plain_pool(maps[b], pool, top, left)
        found = pooled[top, left, b]
        np.testing.assert_array_equal(found[: plain.shape[0], : plain.shape[1]], plain)
        assert not found[plain.shape[0] :].any() and not found[:, plain.shape[1] :].any()


# Sides 6 to 11 make the offsets' maps differ in every way: with a pool of 3 and a kernel of 2, 8 and 11 suit all.
@pytest.mark.parametrize("pool", [1, 2, 3])
@pytest.mark.parametrize("size", [(6, 6), (6, 7), (7, 11), (8, 8), (9, 10), (11, 8)])
@pytest.mark.parametrize("kernel", [1, 2])
def test_interleaved_outputs_are_the_head_on_each_window_alone(pool, size, kernel):
    maps = random_maps(2, *size)
    weights = np.random.default_rng(1).normal(size=(kernel, kernel, 3, 2)).astype(np.float32)
    side = pool * kernel
    height, width = (n - side + 1 for n in size)
    outputs = interleave(slide(np.asarray(offset_max_pool(maps, pool)), weights), pool, height, width)
    assert outputs.shape == (2, height, width, 2)
    for b, i, j in np.ndindex(2, height, width):
        window = maps[b, i : i + side, j : j + side]
        np.testing.assert_allclose(
            np.asarray(outputs)[b, i, j], plain_head(plain_pool(window, pool), weights), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("pool", [2, 3])
def test_a_map_of_one_window_gives_one_output(pool):
    maps = random_maps(1, 2 * pool, 2 * pool)
    weights = np.ones((2, 2, 3, 1), np.float32)
    outputs = interleave(slide(offset_max_pool(maps, pool).numpy(), weights), pool, 1, 1).numpy()
    np.testing.assert_allclose(outputs, plain_pool(maps[0], pool).sum().reshape(1, 1, 1, 1), rtol=1e-5)


def test_channels_and_images_keep_to_themselves():
    maps = np.zeros((2, 6, 6, 2), np.float32)
    maps[1, 2, 3, 1] = 7.0
    pooled = offset_max_pool(maps, 3).numpy().reshape(9, 2, 2, 2, 2)  # offset, image, rows, columns, channels
    assert not pooled[:, 0].any() and not pooled[..., 0].any()
    # The cell at (2, 3): at offset (0, 0) in cell (0, 1), at (1, 1) in (0, 0), at (2, 0) in (0, 1).
    for offset, cell in [(0, (0, 1)), (4, (0, 0)), (6, (0, 1))]:
        assert np.argwhere(pooled[offset, 1, ..., 1]).tolist() == [list(cell)]
