"""What a network says of its layers: names, shapes, strides, map sides, parameters and multiply-adds; no TensorFlow.

A `Backbone` describes feature layers and builds them in Keras. `ConvBackbone` is the paper's kind, a chain of
convolutions; `keras_backbone.KerasBackbone` is any Keras model. Window, heads and scales stand above it, in
`presets.Preset`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

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


INIT_STD = 0.01  # 3.1
GREY = 118.380951  # mean pixel of the authors' release, 0..255
CONTRAST = 61.8969116  # its standard deviation


class Layer(NamedTuple):
    """A layer with weights: a convolution of square `kernel`, or a full layer as the convolution that it is (3.5).

    Attributes:
        name: Of the Keras layer.
        inputs, channels: Channels that one output sees, and channels out: a depthwise convolution has one input.
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
    """Feature layers from pixels to the last map before its pooling, described without building them.

    Cell (i, j) of the last map is centred on the pixels [i s, i s + s) by [j s, j s + s), s being the stride.

    Attributes:
        is_chain: Whether each layer feeds the next one alone, so that `overfeat_tf.compute` may regroup them.
        pool: Side of the last pooling, which the heads take at every offset (3.3).
        mean: The pixel value that pictures are padded with.
    """

    is_chain: ClassVar[bool]
    pool: int
    mean: float

    @property
    @abstractmethod
    def layers(self) -> tuple[Layer, ...]:
        """The layers with weights, first to last."""

    @property
    @abstractmethod
    def map_names(self) -> list[str]:
        """The layers of the Keras model that give a map, before its rectifier or after it, from the pixels up."""

    @property
    @abstractmethod
    def stride(self) -> int:
        """Pixels from one cell of the last map to the next."""

    @abstractmethod
    def sides(self, side: int) -> list[int]:
        """Return the side of each layer's map, before its pooling, for an input of `side` pixels."""

    @abstractmethod
    def build(self, weights: bool = True, init_std: float | None = INIT_STD) -> "keras.Model":
        """Build the Keras model from pixels [B, H, W, 3], 0..255, to the last map.

        Args:
            weights: Draw the initial weights, or leave zeros for others to be loaded.
            init_std: See `Preset.init_std`.
        """

    def config(self) -> dict:
        """Describe the backbone, a dataclass, in JSON's types."""
        return asdict(self)  # type: ignore[call-overload]

    @property
    def depth(self) -> int:
        """Number of the last feature layer; the layers of the heads number on from it."""
        return len(self.layers)

    @property
    def last_layer(self) -> str:
        """Name of the layer that gives the last map."""
        return self.layers[-1].name

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
        mean, std: Input normalisation, (pixel - mean) / std, the same for all channels.
    """

    is_chain = True
    convs: tuple[Conv, ...]
    mean: float = GREY
    std: float = CONTRAST

    @property
    def pool(self) -> int:  # type: ignore[override]
        """The pool of the last row."""
        return self.convs[-1].pool

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The convolutions: conv1, conv2 ..."""
        below = (3, *(row.channels for row in self.convs))
        return tuple(
            Layer(f"conv{number}", inputs, row.channels, row.kernel, row.stride, row.padding, row.pool)
            for number, (row, inputs) in enumerate(zip(self.convs, below, strict=False), start=1)
        )

    @property
    def map_names(self) -> list[str]:
        """The layers that give a map: conv1, relu1, pool1 ..."""
        numbers = range(1, len(self.convs) + 1)
        pooled = [number for number in numbers[:-1] if self.convs[number - 1].pool > 1]
        return [f"{kind}{n}" for n in numbers for kind in ("conv", "relu", *["pool"] * (n in pooled))]

    @property
    def stride(self) -> int:
        """Pixels from one cell of the last map to the next (12 for `accurate`)."""
        return prod(row.stride * row.pool for row in self.convs) // self.convs[-1].pool

    def sides(self, side: int) -> list[int]:
        found = []
        for row in self.convs:
            found.append(max((side + 2 * row.padding - row.kernel) // row.stride + 1, 0))
            side = found[-1] // row.pool
        return found

    @classmethod
    def from_config(cls, config: Mapping) -> "ConvBackbone":
        """Build the backbone from `config`."""
        return cls(**{**config, "convs": tuple(Conv(**row) for row in config["convs"])})

    def build(self, weights: bool = True, init_std: float | None = INIT_STD) -> "keras.Model":
        """Build `normalise`, then pad, conv, relu and pool by their numbers; zeros unless `weights` are drawn."""
        import keras
        from keras import layers

        pixels = keras.Input((None, None, 3), name="pixels")
        x = layers.Rescaling(1.0 / self.std, -self.mean / self.std, name="normalise")(pixels)
        for number, row in enumerate(self.layers, start=1):
            if row.padding:
                x = layers.ZeroPadding2D(row.padding, name=f"pad{number}")(x)
            draw = initializer(init_std, weights)
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
