"""Windows and strides against Table 5, and the sides that suit every offset."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overfeat_tf.network.presets import PRESETS

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
