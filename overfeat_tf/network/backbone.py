"""What a network says of its layers: names, shapes, strides, map sides, parameters and multiply-adds; no TensorFlow.

A `Backbone` describes feature layers and builds them in Keras. `ConvBackbone` is the paper's kind, a chain of
convolutions. Window, heads and scales stand above it, in `presets.Preset`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Conv:
    """A convolution row: square `kernel`, ReLU, then a non-overlapping max pool of side `pool` (1 = none)."""

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    pool: int = 1


class Layer(NamedTuple):
    """A layer with weights: a convolution of square `kernel`, or a full layer as the convolution that it is (3.5).

    Attributes:
        name: Of the Keras layer.
        inputs, channels: Channels in and out.
        kernel, stride, padding: In cells of its input.
        pool: Side of the max pool that follows; 1 where there is none.
    """

    name: str
    inputs: int
    channels: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    pool: int = 1

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds at one place, which are also the weights of its kernel."""
        return self.kernel**2 * self.inputs * self.channels

    @property
    def parameters(self) -> int:
        """Weights of kernel and bias."""
        return self.multiply_adds + self.channels


class Backbone(ABC):
    """Feature layers from pixels to the last map before its pooling, described without building them."""

    @property
    @abstractmethod
    def layers(self) -> tuple[Layer, ...]:
        """The layers with weights, first to last."""

    @property
    @abstractmethod
    def stride(self) -> int:
        """Pixels from one cell of the last map to the next."""

    @abstractmethod
    def sides(self, side: int) -> list[int]:
        """Return the side of each layer's map, before its pooling, for an input of `side` pixels."""

    @abstractmethod
    def build(self, weights: bool = True) -> "keras.Model":
        """Build the Keras model from pixels [B, H, W, 3], 0..255, to the last map; zeros unless `weights` are drawn."""

    @property
    def channels(self) -> int:
        """Channels of the last map."""
        return self.layers[-1].channels

    @property
    def parameters(self) -> int:
        """Weights of all layers."""
        return sum(layer.parameters for layer in self.layers)

    def map_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return the (height, width) of each layer's map, before its pooling, for an input of height x width pixels."""
        return list(zip(self.sides(height), self.sides(width), strict=True))

    def multiply_adds(self, height: int, width: int) -> int:
        """Count the multiply-adds on an input of height x width pixels (Table 4)."""
        sizes = self.map_sizes(height, width)
        return sum(rows * columns * one.multiply_adds for one, (rows, columns) in zip(self.layers, sizes, strict=True))

    def largest_map(self, height: int, width: int) -> int:
        """Count the numbers in the largest map on an input of height x width pixels."""
        sizes = self.map_sizes(height, width)
        return max(rows * columns * one.channels for one, (rows, columns) in zip(self.layers, sizes, strict=True))


@dataclass(frozen=True)
class ConvBackbone(Backbone):
    """A chain of convolutions: the feature layers of Tables 1 and 3.

    Attributes:
        convs: The rows, first to last; the last one's pool is not among its layers, since the heads take it (3.3).
        mean, std: Input normalisation, (pixel - mean) / std.
        init_std: Standard deviation of the initial weights; None asks for He's.
    """

    convs: tuple[Conv, ...]
    mean: float
    std: float
    init_std: float | None

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The convolutions: conv1, conv2 ..."""
        below = (3, *(row.channels for row in self.convs))
        return tuple(
            Layer(f"conv{number}", inputs, row.channels, row.kernel, row.stride, row.padding, row.pool)
            for number, (row, inputs) in enumerate(zip(self.convs, below, strict=False), start=1)
        )

    @property
    def stride(self) -> int:
        """Pixels from one cell of the last map to the next (12 for `accurate`)."""
        return prod(row.stride * row.pool for row in self.convs) // self.convs[-1].pool

    def sides(self, side: int) -> list[int]:
        """Return the side of each layer's map, before its pooling, for an input of `side` pixels."""
        found = []
        for row in self.convs:
            found.append(max((side + 2 * row.padding - row.kernel) // row.stride + 1, 0))
            side = found[-1] // row.pool
        return found

    def build(self, weights: bool = True) -> "keras.Model":
        """Build `normalise`, then pad, conv, relu and pool by their numbers; zeros unless `weights` are drawn."""
        import keras
        from keras import layers

        pixels = keras.Input((None, None, 3), name="pixels")
        x = layers.Rescaling(1.0 / self.std, -self.mean / self.std, name="normalise")(pixels)
        for number, row in enumerate(self.layers, start=1):
            if row.padding:
                x = layers.ZeroPadding2D(row.padding, name=f"pad{number}")(x)
            draw = initializer(self.init_std, weights)
            x = layers.Conv2D(row.channels, row.kernel, row.stride, kernel_initializer=draw, name=row.name)(x)
            x = layers.ReLU(name=f"relu{number}")(x)
            if row.pool > 1 and number < len(self.convs):
                x = layers.MaxPooling2D(row.pool, name=f"pool{number}")(x)
        return keras.Model(pixels, x, name="features")


def initializer(std: float | None, weights: bool = True) -> "str | keras.Initializer":
    """Return the initializer of a kernel: normal of deviation `std`, He's for None, zeros without `weights`."""
    import keras

    if not weights:
        return "zeros"
    return "he_normal" if std is None else keras.initializers.RandomNormal(stddev=std)
