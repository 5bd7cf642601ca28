"""How a network's layers are computed when it is run densely: as convolutions, as products of all maps, or by tiles."""

from collections.abc import Callable
from functools import cached_property

import keras
import tensorflow as tf
from keras import layers

from overfeat_tf.compute.arithmetic import ARITHMETICS, choose_tiles
from overfeat_tf.network.convnet import PIXELS, Network

# Numbers in the weights of a feature layer from which it is a product of all maps: `accurate`'s last has 9.4 M. A
# convolution reads such weights again and again for each map, and comes to two thirds of the product's rate.
WIDE = 8_000_000


class Execution:
    """A network's layers with what it takes to compute them by an arithmetic.

    Attributes:
        network: The network, whose variables and definition are what they are.
        sides: The windows along a tile of each layer that is transformed, by its name.
        traced: The features of so many views as one tf.function: `overfeat_tf.compute.dense`.
    """

    def __init__(self, network: Network, arithmetic: str):
        self.network = network
        transformed = arithmetic == "transformed"
        self.sides = choose_tiles(network.preset, network.context) if transformed else {}
        self.traced: dict[int, Callable] = {}

    def joins(self, layer: layers.Layer) -> bool:
        """Tell whether a layer is run over all maps at once."""
        return is_wide(layer) or layer.name in self.sides

    @cached_property
    def tail(self) -> list[layers.Layer]:
        """The last feature layers, from the first that joins maps, and its padding, on; none for small networks."""
        rows = self.network.features.layers
        first = next((i for i, layer in enumerate(rows) if self.joins(layer)), None)
        return [] if first is None else rows[first - isinstance(rows[first - 1], layers.ZeroPadding2D) :]

    @cached_property
    def trunk(self) -> tf.types.experimental.PolymorphicFunction:
        """The features below `tail`, as one tf.function for pixels of every size: a pyramid is traced once."""
        features = self.network.features
        last = features.layers[len(features.layers) - len(self.tail) - 1]
        trunk = keras.Model(features.input, last.output, name="trunk")
        return tf.function(lambda pixels: trunk(pixels, training=False), PIXELS, autograph=False)


def execution_of(network: Network, arithmetic: str) -> Execution:
    """Give a network's execution by an arithmetic; there is one of each, made when first asked for.

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
