"""Which layers take fewer multiplications, and with which tiles: a measured rule.

A layer of r x r taps over C channels, K outputs, is direct: a row of r^2 C numbers for each window, one product with
its weights. Or it is transformed: F(m x m, r x r) of `cook_toom`, for each tile of m x m windows t^2 products of C
numbers, t = m + r - 1, between two small products that transform what goes in and what comes out, with weights that
are transformed in every call. Both are priced in multiply-adds at the rate of a large matrix product. MOVED, READ and
CONVOLVED are from measurements on two cores of x86 CPUs, STARTED is an estimate, and SAVED a choice: with a third of
it, `accurate` scanned a tenth faster, and took half as long again to load and 1.3 GB more to run.
`overfeat benchmark scan` prints what the rule expects of each layer and what it takes. The rule decides for each layer
by its shape which tiles to have, and for each call by the sizes of its maps whether to use them.

It is a rule for CPUs: a GPU's library has such transforms of its own, and picks them by itself.
"""

import platform
from typing import Any, NamedTuple

from overfeat_tf.compute.cook_toom import MOST_POINTS
from overfeat_tf.network.presets import Preset

ARITHMETICS = ("direct", "transformed")
# Multiply-adds in the time of:
MOVED = 45  # writing a number somewhere else, as gathering and stacking do
READ = 24  # reading a weight once: what a product of few rows waits for
STARTED = 2_000_000  # starting an operation
CONVOLVED = 1.15  # a multiply-add of TensorFlow's own convolution, which moves nothing beforehand
SAVED = 10_000_000_000  # what a transform has to save on a preset's own scales, to be worth its graph and memory


class Shape(NamedTuple):
    """A layer's taps along a side r, cells from one tap to the next, and channels in and out."""

    taps: int
    apart: int
    channels: int
    outputs: int


def direct_cost(shape: Shape, windows: Any) -> Any:
    """Price a layer over so many windows, as one product of gathered rows, in multiply-adds; ints or tensors."""
    row = shape.taps**2 * shape.channels
    return windows * (row * (shape.outputs + MOVED)) + row * shape.outputs * READ


def transformed_cost(shape: Shape, side: int, tiles: Any) -> Any:
    """Price a layer over so many tiles of `side` x `side` windows, likewise."""
    points = (side + shape.taps - 1) ** 2
    weights = points * shape.channels * shape.outputs
    derived = weights * (2 * MOVED + shape.taps**2 + READ)  # gathered, then transformed, then read
    incoming = shape.channels * (2 * MOVED + points)  # gathered, then transformed
    outgoing = shape.outputs * (2 * MOVED + side**2)  # stacked, then transformed
    return tiles * (points * (incoming + outgoing) + weights) + derived + 2 * points * STARTED


def tiles_along(windows: int, apart: int, side: int) -> int:
    """Count tiles along a side of a map: each offset of taps that lie `apart` has tiles of its own."""
    each = -(-windows // apart)
    return apart * -(-each // side)


def choose_tiles(preset: Preset, context: bool = False) -> dict[str, int]:
    """Choose the tiles' side for every layer that is faster so on the preset's own scales, one flip: name -> side.

    Layers are named as in the network.
    """
    chosen: dict[str, int] = {}
    channels, maps = 3, [feature_sizes(preset, *scale) for scale in preset.scales]
    for number, row in enumerate(preset.convs, start=1):
        shape = Shape(row.kernel, 1, channels, row.channels)
        if row.stride == 1:
            side = _best(shape, [sides[number - 1] for sides in maps], CONVOLVED)
            chosen |= {f"conv{number}": side} if side else {}
        channels = row.channels
    reach = preset.last_pool * preset.head_kernel - 1
    windows = [tuple(side - reach for side in sides[-1]) for sides in maps]
    for head, outputs in (("full", preset.full[0]), ("regress", preset.regressor[0])):
        shape = Shape(preset.head_kernel, preset.last_pool, channels * (1 + context), outputs)
        side = _best(shape, windows)
        chosen |= {f"{head}{len(preset.convs) + 1}": side} if side else {}
    return chosen


def feature_sizes(preset: Preset, height: int, width: int) -> list[tuple[int, int]]:
    """List the sizes of what each convolution gives, before its pooling."""
    return [(down, across) for (down, _), (across, _) in zip(preset.sides(height), preset.sides(width), strict=True)]


def suits_this_machine() -> str:
    """Name the arithmetic for whoever does not choose: transformed on an x86 CPU alone, direct elsewhere."""
    import tensorflow as tf

    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return "transformed" if x86 and not tf.config.list_physical_devices("GPU") else "direct"


def _best(shape: Shape, windows: list, convolved: float | None = None) -> int | None:
    """Give the tiles' side of the least cost over maps of windows (down, across); None where direct is as good."""
    count = sum(down * across for down, across in windows)
    direct = direct_cost(shape, count)
    if convolved is not None:
        direct = min(direct, count * shape.taps**2 * shape.channels * shape.outputs * convolved)
    costs = {}
    for side in range(2, MOST_POINTS - shape.taps + 2):
        along = [[tiles_along(length, shape.apart, side) for length in each] for each in windows]
        costs[side] = transformed_cost(shape, side, sum(down * across for down, across in along))
    best = min(costs, key=lambda side: costs[side], default=None) if shape.taps > 1 else None
    return best if best is not None and costs[best] < direct - SAVED else None
