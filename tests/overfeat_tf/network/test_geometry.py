"""Windows and strides against Table 5, and the sides that suit every offset."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overfeat_tf.network.geometry import stride, suit_side, window_count
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
        assert window_count(ACCURATE, side, fine=False) == c
        assert window_count(ACCURATE, side) == f


def test_table_5_has_1575_windows():
    assert ACCURATE.scales == tuple(row[0] for row in TABLE_5)
    assert sum(window_count(ACCURATE, h) * window_count(ACCURATE, w) for h, w in ACCURATE.scales) == 1575


@pytest.mark.parametrize(("name", "first", "step"), [("accurate", 245, 36), ("fast", 247, 32), ("tiny", 36, 8)])
def test_suiting_sides_are_those_that_give_every_offset_the_same_map(name, first, step):
    preset = PRESETS[name]

    def suits(side):
        sides = {(preset.feature_side(side) - offset) // preset.last_pool for offset in range(preset.last_pool)}
        # The last window ends at the edge: no pixel is left over for it.
        ends = (window_count(preset, side) - 1) * preset.fine_stride + preset.window == side
        return len(sides) == 1 and ends and window_count(preset, side) > 0

    assert [side for side in range(1, first + 6 * step) if suits(side)] == [first + k * step for k in range(6)]
    assert [suit_side(preset, first + k * step) for k in range(6)] == [first + k * step for k in range(6)]


@pytest.mark.parametrize("name", PRESETS)
@given(side=st.floats(0, 5000))
def test_suit_side_is_the_nearest_suiting_side(name, side):
    preset = PRESETS[name]
    suits = [preset.smallest_input + preset.coarse_stride * k for k in range(5000 // preset.coarse_stride + 2)]
    chosen = suit_side(preset, side)
    assert chosen in suits
    assert abs(chosen - side) == min(abs(other - side) for other in suits)


@pytest.mark.parametrize("name", PRESETS)
@given(side=st.integers(0, 1000))
def test_windows_are_counted_by_laying_them_out(name, side):
    preset = PRESETS[name]
    for fine in (True, False):
        # Convolutions and pools drop what does not fill them, so the windows end where the map does, not the image.
        kernel = preset.last_pool * preset.head_kernel
        step = 1 if fine else preset.last_pool
        laid = len(range(0, preset.feature_side(side) - kernel + 1, step))
        assert window_count(preset, side, fine) == laid
        pixels = stride(preset, fine)
        assert laid == 0 or (laid - 1) * pixels + preset.window <= side
    assert stride(preset, fine=False) == preset.last_pool * stride(preset)
