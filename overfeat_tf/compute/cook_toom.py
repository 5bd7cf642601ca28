"""Minimal filtering: the transforms by which a short correlation takes fewer multiplications (Cook-Toom, Winograd).

F(m, r) gives m outputs of a correlation with r taps by t = m + r - 1 products in place of m r:
y = A^T [(G g) * (B^T d)], * element by element, where y_i is the sum over j of d_(i+j) g_j. The two steps around the
products are polynomials' values at t points and their way back, transposed; they are made here from that definition,
in exact fractions. In two dimensions each side is transformed by itself: F(m x m, r x r) has t^2 products for m^2 r^2.
"""

from fractions import Fraction
from functools import cache
from typing import NamedTuple

import numpy as np

# Small numbers and their inverses keep the matrices' entries, and so the rounding errors, small; the last point of all
# is infinity. There are seven: with more than eight points float32 is not exact enough for us.
POINTS = (Fraction(0), *(Fraction(sign * n, d) for n, d in ((1, 1), (2, 1), (1, 2)) for sign in (1, -1)))
MOST_POINTS = len(POINTS) + 1

Rows = list[list[Fraction]]


class Transforms(NamedTuple):
    """The matrices of F(m, r), float64: data B^T [t, t], taps G [t, r], outputs A^T [m, t]."""

    data: np.ndarray
    taps: np.ndarray
    outputs: np.ndarray

    def square(self) -> "Transforms":
        """Give those of F(m x m, r x r), for squares laid out row by row: [t^2, t^2], [t^2, r^2], [m^2, t^2]."""
        return Transforms(*(np.kron(matrix, matrix) for matrix in self))


@cache
def transforms(outputs: int, taps: int) -> Transforms:
    """Make F(outputs, taps).

    Raises:
        ValueError: it has fewer than two outputs or taps, or more than `MOST_POINTS` points.
    """
    return Transforms(*(np.array(rows, float) for rows in exact_transforms(outputs, taps)))


def exact_transforms(outputs: int, taps: int) -> tuple[Rows, Rows, Rows]:
    """Make F(outputs, taps) in fractions: B^T, G and A^T.

    The product of polynomials of degrees m - 1 and r - 1 is s = V_t^-1 [(V_r g) * (V_m h)], V_n being the values of
    degrees below n at the t points. A correlation is this, transposed in h and s: A^T = V_m^T, G = V_r, B^T = V_t^-T.
    The rows of V_t^-T are the coefficients of Lagrange's polynomials; their denominators go to G.
    """
    count = outputs + taps - 1
    if min(outputs, taps) < 2 or count > MOST_POINTS:
        raise ValueError(f"expected F(m, r) of at most {MOST_POINTS} points; got F({outputs}, {taps})")
    points = POINTS[: count - 1]
    data, kernel = [], _values(points, taps)
    for number, point in enumerate(points):
        others = points[:number] + points[number + 1 :]
        scale = Fraction(1)
        for other in others:
            scale *= point - other
        data.append([*_with_roots(others), Fraction(0)])
        kernel[number] = [value / scale for value in kernel[number]]
    data.append(_with_roots(points))
    return data, kernel, [list(row) for row in zip(*_values(points, outputs), strict=True)]


def _values(points: tuple[Fraction, ...], degrees: int) -> Rows:
    """List the values of 1, x, x^2 ... at each point, and at infinity, where the highest degree alone counts."""
    finite = [[point**degree for degree in range(degrees)] for point in points]
    return [*finite, [Fraction(degree == degrees - 1) for degree in range(degrees)]]


def _with_roots(roots: tuple[Fraction, ...]) -> list[Fraction]:
    """Give the coefficients, lowest first, of the polynomial with these roots and a leading 1."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *coefficients], [*(root * value for value in coefficients), Fraction(0)]
        coefficients = [high - low for high, low in zip(shifted, scaled, strict=True)]
    return coefficients
