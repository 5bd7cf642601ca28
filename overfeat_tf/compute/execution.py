"""How a network's layers are computed when it runs densely: a measured rule chooses Winograd's tiles where they pay.

A layer of r x r taps over C channels, K outputs, is direct: a row of r^2 C numbers for each window, one product with
its weights. Or it is computed by tiles (`winograd`): for each tile of m x m windows t^2 products of C numbers,
t = m + r - 1, between two small products that transform what goes in and what comes out, with weights that are
transformed in every call. Both are priced in multiply-adds at the rate of a large matrix product. MOVE_COST,
READ_COST and CONV_COST were measured on two cores of x86 CPUs. LAUNCH_COST is an estimate, MIN_SAVING and MIN_SPEEDUP
are choices: without MIN_SPEEDUP, `accurate` would also run its second layer by tiles, hardly faster and in 1 GB more.
`overfeat benchmark scan` prints what the rule expects of each layer and what it takes. The rule chooses the tiles of
each layer by its shape; each call then compares the two costs for the sizes of its maps.

It is a rule for CPUs: a GPU's library has such transforms of its own, and chooses them by itself.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import layers

from overfeat_tf.compute.precision import MIXED, in_precision
from overfeat_tf.compute.winograd import MOST_POINTS, tiles_along
from overfeat_tf.network.convnet import PIXELS, Network
from overfeat_tf.network.presets import Preset
from overfeat_tf.options import ARITHMETICS

# Multiply-adds in the time of:
MOVE_COST = 45  # writing a number somewhere else, as gathering and stacking do
READ_COST = 24  # reading a weight once: what a product of few rows waits for
LAUNCH_COST = 2_000_000  # starting an operation
CONV_COST = 1.15  # a multiply-add of TensorFlow's own convolution, which moves nothing beforehand
MIN_SAVING = 5_000_000_000  # what tiles have to save on a preset's own scales, to be worth their graph
MIN_SPEEDUP = 1.5  # how many times as fast they have to be, to be worth their memory

# Numbers in the weights of a feature layer from which it is a product of all maps: `accurate`'s last has 9.4 M. A
# convolution reads such weights again and again for each map, and comes to two thirds of the product's rate.
WIDE = 8_000_000


class Execution:
    """A network's layers with what it takes to compute them by an arithmetic.

    Attributes:
        network: The network.
        sides: The windows along a tile of each layer that is computed by tiles, by its name.
        dtype: What its maps are.
        traced: The features of so many views as one tf.function: `overfeat_tf.compute.dense`.
    """

    def __init__(self, network: Network, arithmetic: str):
        self.network = network
        self.dtype = tf.bfloat16 if arithmetic == "bfloat16" else tf.float32
        self.sides = choose_tiles(network.preset, network.context) if arithmetic == "winograd" else {}
        self.traced: dict[int, Callable] = {}

    def joins(self, layer: layers.Layer) -> bool:
        """Tell whether a layer is run over all maps at once."""
        return is_wide(layer) or layer.name in self.sides

    def computing(self) -> AbstractContextManager:
        """Let the layers compute in `dtype` while they are traced."""
        return in_precision(self.network, MIXED) if self.dtype == tf.bfloat16 else nullcontext()

    @cached_property
    def tail(self) -> list[layers.Layer]:
        """The last feature layers, from the first that joins maps, and its padding, on; none for small networks."""
        if not self.network.preset.backbone.is_chain:
            return []
        rows = self.network.features.layers
        first = next((i for i, layer in enumerate(rows) if self.joins(layer)), None)
        return [] if first is None else rows[first - isinstance(rows[first - 1], layers.ZeroPadding2D) :]

    @cached_property
    def trunk(self) -> tf.types.experimental.PolymorphicFunction:
        """The features below `tail`, as one tf.function for pixels of every size: a pyramid is traced once."""
        features = self.network.features
        trunk = features
        if self.tail:
            last = features.layers[len(features.layers) - len(self.tail) - 1]
            trunk = keras.Model(features.input, last.output, name="trunk")
        return tf.function(lambda pixels: trunk(pixels, training=False), PIXELS, autograph=False)


def execution_of(network: Network, arithmetic: str) -> Execution:
    """Return a network's execution by an arithmetic; the network keeps one of each.

    Raises:
        ValueError: no such arithmetic.
    """
    if arithmetic not in ARITHMETICS:
        raise ValueError(f"expected an arithmetic of {', '.join(ARITHMETICS)}; got '{arithmetic}'")
    if arithmetic not in network.executions:
        network.executions[arithmetic] = Execution(network, arithmetic)
    return network.executions[arithmetic]


def is_wide(layer: layers.Layer) -> bool:
    """Tell whether a layer is a convolution of stride 1 with at least `WIDE` weights."""
    return (
        isinstance(layer, layers.Conv2D) and layer.strides == (1, 1) and layer.kernel.value.shape.num_elements() >= WIDE
    )


class Shape(NamedTuple):
    """A layer's taps along a side r, cells from one tap to the next, and channels in and out."""

    taps: int
    dilation: int
    channels: int
    outputs: int


def direct_cost(shape: Shape, windows: Any) -> Any:
    """Price a layer over so many windows, as one product of gathered rows, in multiply-adds; ints or tensors."""
    row = shape.taps**2 * shape.channels
    return windows * (row * (shape.outputs + MOVE_COST)) + row * shape.outputs * READ_COST


def winograd_cost(shape: Shape, side: int, tiles: Any) -> Any:
    """Price a layer over so many tiles of `side` x `side` windows, likewise."""
    points = (side + shape.taps - 1) ** 2
    weights = points * shape.channels * shape.outputs
    derived = weights * (2 * MOVE_COST + shape.taps**2 + READ_COST)  # gathered, then transformed, then read
    incoming = shape.channels * (2 * MOVE_COST + points)  # gathered, then transformed
    outgoing = shape.outputs * (2 * MOVE_COST + side**2)  # stacked, then transformed
    return tiles * (points * (incoming + outgoing) + weights) + derived + 2 * points * LAUNCH_COST


class TiledLayer(NamedTuple):
    """A layer with its tiles' side, None where it is direct, and what it costs directly and by tiles."""

    name: str
    side: int | None
    direct: float
    tiled: float


def choose_tiles(preset: Preset, context: bool = False) -> dict[str, int]:
    """Choose the tiles' side for every layer that they make faster on the preset's own scales, one flip: name -> side.

    Layers are named as in the network.
    """
    return {row.name: row.side for row in _price_layers(preset, context) if row.side}


def tiles_gain(network: Network) -> float:
    """Return how many times as fast the cost model expects a scan to be by tiles, where they pay, as directly."""
    preset = network.preset
    rows = [row for row in _price_layers(preset, network.context) if not row.name.startswith("regress")]
    fixed = 0 if preset.backbone.is_chain else sum(preset.backbone.multiply_adds(*scale) for scale in preset.scales)
    tiled = sum(row.tiled if row.side else row.direct for row in rows)
    return (fixed + sum(row.direct for row in rows)) / (fixed + tiled)


def _price_layers(preset: Preset, context: bool) -> Iterator[TiledLayer]:
    sizes = [preset.backbone.map_sizes(*scale) for scale in preset.scales]
    chain = preset.backbone.layers if preset.backbone.is_chain else ()
    for layer, maps in zip(chain, zip(*sizes, strict=False), strict=False):
        shape = Shape(layer.kernel, 1, layer.inputs, layer.channels)
        yield _price(layer.name, shape, maps, CONV_COST, layer.stride == 1)
    reach = preset.last_pool * preset.head_kernel - 1
    windows = [(height - reach, width - reach) for *_, (height, width) in sizes]
    for first, *_ in (preset.head(part, 1, context) for part in ("classifier", "regressor")):
        yield _price(first.name, Shape(first.kernel, preset.last_pool, first.inputs, first.channels), windows)


def _price(name: str, shape: Shape, windows: Any, convolved: float | None = None, tiled: bool = True) -> TiledLayer:
    """Price a layer over maps of windows (down, across), directly and by the tiles of the least cost."""
    count = sum(down * across for down, across in windows)
    direct = direct_cost(shape, count)
    if convolved is not None:
        direct = min(direct, count * shape.taps**2 * shape.channels * shape.outputs * convolved)
    costs = {}
    for side in range(2, MOST_POINTS - shape.taps + 2) if tiled and shape.taps > 1 else ():
        along = [[tiles_along(length, shape.dilation, side) for length in each] for each in windows]
        costs[side] = winograd_cost(shape, side, sum(down * across for down, across in along))
    best = min(costs, key=lambda side: costs[side], default=None)
    pays = best is not None and direct - costs[best] > MIN_SAVING and direct > MIN_SPEEDUP * costs[best]
    return TiledLayer(name, best if pays else None, direct, costs[best] if best is not None else direct)
