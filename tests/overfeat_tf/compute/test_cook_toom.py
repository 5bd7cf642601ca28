"""Minimal filtering against the correlation by its definition, in fractions and in float64."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overfeat_tf.compute.winograd import MOST_POINTS, exact_transforms, transforms

SIZES = [(m, r) for r in range(2, MOST_POINTS) for m in range(2, MOST_POINTS - r + 2)]


@pytest.mark.parametrize("outputs, taps", SIZES)
def test_a_correlation_is_exact_in_fractions(outputs, taps):
    data, kernel, back = exact_transforms(outputs, taps)
    for tap in range(taps):  # bilinear: units on both sides say all
        for place in range(outputs + taps - 1):
            products = [row[tap] * column[place] for row, column in zip(kernel, data, strict=True)]
            found = [sum(a * b for a, b in zip(row, products, strict=True)) for row in back]
            assert found == [Fraction(output + tap == place) for output in range(outputs)]


@given(size=st.sampled_from(SIZES), seed=st.integers(0, 2**32 - 1))
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
