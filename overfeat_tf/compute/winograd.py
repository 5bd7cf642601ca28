"""Winograd's minimal filtering: a layer over all windows of all maps in fewer multiplications.

F(m, r) gives m outputs of a correlation with r taps by t = m + r - 1 products instead of m r:
y = A^T [(G g) * (B^T d)], * element by element, where y_i is the sum over j of d_(i+j) g_j. The two steps around the
products evaluate polynomials at t points and interpolate them again, transposed (Cook-Toom); `exact_transforms` makes
their matrices from that definition, in exact fractions. In two dimensions each side is transformed by itself:
F(m x m, r x r) has t^2 products instead of m^2 r^2.

A tile is m x m windows of one offset of a map: t x t cells, t = m + r - 1, `dilation` from one to the next. Tiles of
all maps (scales, flips, offsets, images) are gathered cell by cell, so that one place of all of them is one matrix.
The transforms are then products with small matrices, and between them each of the t x t places has a product of its
own, of all tiles, with the layer's weights as transformed for that place.

Transformed weights are up to 64 / 9 times as large as the layer's own. Every call derives them again, for a block of
outputs at a time: that costs `accurate`'s scan a tenth of its time, whereas keeping them took 2.5 GB more and three
times as long to load. They are always those of the variables.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from typing import NamedTuple

import numpy as np
import tensorflow as tf

# Small numbers and their inverses keep the matrices' entries, and so the rounding errors, small; the last point of all
# is infinity. There are seven finite ones: with more than eight points the float32 errors are too large.
POINTS = (Fraction(0), *(Fraction(sign * n, d) for n, d in ((1, 1), (2, 1), (1, 2)) for sign in (1, -1)))
MOST_POINTS = len(POINTS) + 1

Rows = list[list[Fraction]]


class Transforms(NamedTuple):
    """The matrices of F(m, r), float64: data B^T [t, t], taps G [t, r], outputs A^T [m, t]."""

    data: np.ndarray
    taps: np.ndarray
    outputs: np.ndarray

    def square(self) -> "Transforms":
        """Return those of F(m x m, r x r), for squares in row-major order: [t^2, t^2], [t^2, r^2], [m^2, t^2]."""
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
    """Return the coefficients, lowest first, of the polynomial with these roots and a leading 1."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *coefficients], [*(root * value for value in coefficients), Fraction(0)]
        coefficients = [high - low for high, low in zip(shifted, scaled, strict=True)]
    return coefficients


# Of numbers gathered at a time: 1000 of `accurate`'s largest tiles, half as many again as its six scales with flips.
TILE_BYTES = 1 << 28
# Outputs whose weights are transformed at a time: 134 MB of `accurate`'s. Fewer make products that run less well.
BLOCK, LEAST_BLOCK = 512, 64


class Tiles(NamedTuple):
    """The tiles of some maps, in order.

    Attributes:
        cells: int32 [t * t, tiles], which cells each tile sees.
        tile: int32 [windows], which tile each window is of.
        place: int32 [windows], and where in it, 0 .. m * m - 1.
    """

    cells: tf.Tensor
    tile: tf.Tensor
    place: tf.Tensor


def lay_tiles(maps: tf.Tensor, taps: int, dilation: int, side: int) -> Tiles:
    """Lay tiles of `side` x `side` windows over maps.

    Args:
        maps: int32 [maps, 3]: the images, and the cells down and across, of each.
        taps: Cells that a window sees along either side.
        dilation: From one of these to the next.
        side: Windows along a tile.
    """
    images, down, across = tf.unstack(maps, axis=1)
    each = images * _tiles_along(down, taps, dilation, side) * _tiles_along(across, taps, dilation, side)
    firsts = (tf.cumsum(count, exclusive=True) for count in (tf.reduce_prod(maps, axis=1), each))
    number, lay = maps.shape[0], _tile_layout(taps, dilation, side)
    found = [lay(*one) for one in zip(*(tf.unstack(t, number) for t in (maps, *firsts)), strict=True)]
    cells, tile, place = zip(*found, strict=True)
    return Tiles(tf.concat(cells, axis=1), tf.concat(tile, axis=0), tf.concat(place, axis=0))


@cache
def _tile_layout(taps: int, dilation: int, side: int) -> Callable[..., tuple]:
    """Return the tf.function that lays tiles over one map, int32 [3], given the numbers of its first cell and tile.

    All maps share it: tracing the indices of each map would make most of a graph.
    """

    def lay(shape: tf.Tensor, first_cell: tf.Tensor, first_tile: tf.Tensor) -> tuple:
        images, height, width = tf.unstack(shape)
        (down, tops, rows), (across, lefts, columns) = (_along(n, taps, dilation, side) for n in (height, width))
        numbers = tf.range(images)
        seen = (numbers[:, None, None] * height + tops[:, None, None, :, None]) * width + lefts[:, None, None, :]
        (row_tiles, row_places), (column_tiles, column_places) = rows, columns
        owners = (numbers[:, None, None] * down + row_tiles[:, None]) * across + column_tiles
        inside = tf.broadcast_to(row_places[:, None] * side + column_places, tf.shape(owners))
        cells = first_cell + tf.reshape(seen, [(side + taps - 1) ** 2, -1])
        return cells, first_tile + tf.reshape(owners, [-1]), tf.reshape(inside, [-1])

    number = tf.TensorSpec([], tf.int32)
    return tf.function(lay, [tf.TensorSpec([3], tf.int32), number, number], autograph=False)


def run_tiles(kernels: Sequence[tf.Tensor], cells: tf.Tensor, tiles: Tiles, side: int) -> list[tf.Tensor]:
    """Run layers that see the same cells, without their biases.

    Args:
        kernels: Their weights, float32 [r, r, C, K] each.
        cells: float32 [n, C], the cells of all maps.
        tiles: What `lay_tiles` gives.
        side: Windows along a tile.

    Returns:
        For each layer float32 [windows, K].
    """
    taps, _, channels, _ = kernels[0].shape
    data = tf.constant(transforms(side, taps).square().data, tf.float32)
    points, widths = data.shape[0], [kernel.shape[-1] for kernel in kernels]
    limit = max(1, TILE_BYTES // (4 * points * channels))
    total = tf.shape(tiles.cells)[1]
    # Pieces of equal length, padded with tiles that are not read.
    pieces = tf.maximum((total + limit - 1) // limit, 1)
    length = (total + pieces - 1) // pieces
    filled = tf.pad(tiles.cells, [[0, 0], [0, pieces * length - total]])
    filled = tf.transpose(tf.reshape(filled, [points, pieces, length]), [1, 0, 2])

    def run(seen: tf.Tensor) -> list[tf.Tensor]:
        gathered = tf.reshape(tf.gather(cells, seen), [points, -1])
        places = tf.unstack(tf.reshape(tf.matmul(data, gathered), [points, -1, channels]))
        return [_multiply_in_blocks(places, kernel, side) for kernel in kernels]

    specs = [tf.TensorSpec([side**2, None, width], tf.float32) for width in widths]
    answers = tf.map_fn(run, filled, fn_output_signature=specs, parallel_iterations=1)
    index = (tiles.tile // tf.maximum(length, 1) * side**2 + tiles.place) * length + tiles.tile % tf.maximum(length, 1)
    return [tf.gather(tf.reshape(each, [-1, width]), index) for each, width in zip(answers, widths, strict=True)]


def _multiply_in_blocks(places: list[tf.Tensor], kernel: tf.Tensor, side: int) -> tf.Tensor:
    """Multiply what lies at each place of all tiles, [tiles, C], with its weights: [m * m, tiles, K]."""
    taps, _, channels, width = kernel.shape
    _, inward, outputs = (tf.constant(matrix, tf.float32) for matrix in transforms(side, taps).square())
    block = _block(width)

    def run(first: tf.Tensor) -> tf.Tensor:
        columns = tf.slice(kernel, [0, 0, 0, first], [taps, taps, channels, block])
        weights = tf.matmul(inward, tf.reshape(columns, [taps**2, -1]))
        pairs = zip(places, tf.unstack(tf.reshape(weights, [len(places), channels, block])), strict=True)
        products = tf.stack([tf.matmul(rows, own) for rows, own in pairs])
        return tf.reshape(tf.matmul(outputs, tf.reshape(products, [len(places), -1])), [side**2, -1, block])

    spec = tf.TensorSpec([side**2, None, block], tf.float32)
    found = tf.map_fn(run, tf.range(0, width, block), fn_output_signature=spec, parallel_iterations=1)
    return tf.reshape(tf.transpose(found, [1, 2, 0, 3]), [side**2, -1, width])


def _block(width: int) -> int:
    """Return the outputs of a block: the largest divisor of `width` up to `BLOCK`, or all where it is too small."""
    most = max(n for n in range(1, BLOCK + 1) if width % n == 0)
    return most if most >= LEAST_BLOCK else width


def tiles_along(windows: int, dilation: int, side: int) -> int:
    """Count tiles along a side of a map: each of the `dilation` offsets of its taps has tiles of its own."""
    each = -(-windows // dilation)
    return dilation * -(-each // side)


def _along(cells: tf.Tensor, taps: int, dilation: int, side: int) -> tuple:
    """Lay tiles along one side of a map.

    Returns:
        How many tiles there are; int32 [t, tiles], the cells of each; and for each window its tile and place in it.
    """
    windows = tf.maximum(cells - dilation * (taps - 1), 0)
    each = _tiles_along(cells, taps, dilation, side) // dilation  # tiles of one offset
    starts = tf.reshape(tf.range(dilation)[:, None] + dilation * side * tf.range(each), [-1])
    reached = tf.range(side + taps - 1)[:, None] * dilation + starts
    seen = tf.clip_by_value(reached, 0, tf.maximum(cells - 1, 0))  # cells beyond the map are in no window
    offset, number = tf.range(windows) % dilation, tf.range(windows) // dilation
    return dilation * each, seen, (offset * each + number // side, number % side)


def _tiles_along(cells: tf.Tensor, taps: int, dilation: int, side: int) -> tf.Tensor:
    return tiles_along(tf.maximum(cells - dilation * (taps - 1), 0), dilation, side)
