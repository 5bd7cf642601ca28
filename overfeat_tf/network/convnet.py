"""The ConvNet as Keras functional models: features, classifier head, regressor head, and the whole."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import keras
import tensorflow as tf
from keras import layers

from overfeat_tf.boxes import BOX_FORMS
from overfeat_tf.network.context import Context
from overfeat_tf.network.heads import interleave, offset_max_pool
from overfeat_tf.network.presets import INIT_STD, Preset, get_preset

if TYPE_CHECKING:
    from overfeat_tf.compute.execution import Execution

PIXELS = [tf.TensorSpec([None, None, None, 3], tf.float32, name="pixels")]


@dataclass(frozen=True)
class Network:
    """One network of the paper's kind; its three parts share nothing but the maps that pass between them.

    Attributes:
        preset: The tables that it was built from.
        num_classes: Object classes, without the background.
        background: Whether the classifier's output 0 is the background class of detection (5).
        per_class: Whether the regressor's last layer has a box for each class (PCR, 4.3) or one for all (SCR).
        box_form: What the four numbers of a box are, one of `boxes.BOX_FORMS`: edges (4.2), or centre and log size.
        context: Whether the heads also see the features of the view at half the resolution (5): `overfeat_tf.network.context`.
        features: Pixels [B, H, W, 3], 0..255, to the last feature map before its pooling [B, n, m, C].
        classifier: Pooled map [B, p, q, C] to class scores before softmax [B, p - kernel + 1, q - kernel + 1,
            classes].
    """

    preset: Preset
    num_classes: int
    background: bool
    per_class: bool
    box_form: str
    context: bool
    features: keras.Model
    classifier: keras.Model

    @cached_property
    def regressor(self) -> keras.Model:
        """Pooled map to the box (top, left, bottom, right) in window sides, or as `box_form` has it: [..., 4] (4).

        With `per_class`, [..., 4 * num_classes], class by class. Built when first asked for: a network that
        only classifies has no need of its 109 M weights.
        """
        return self._regressor(weights=True)

    def blank_regressor(self) -> keras.Model:
        """Build the regressor with zeros, for weights that are about to be loaded."""
        return self.__dict__.setdefault("regressor", self._regressor(weights=False))

    @property
    def parts(self) -> dict[str, keras.Model]:
        """The models that there are, by name: the regressor only where something has asked for it."""
        built = {"features": self.features, "classifier": self.classifier}
        return {**built, "regressor": self.regressor} if "regressor" in self.__dict__ else built

    @cached_property
    def executions(self) -> dict[str, "Execution"]:
        """The ways in which it has been run densely, by their arithmetic: `overfeat_tf.compute.execution`."""
        return {}

    def whole(self, side: int | None = None, fine: bool = True) -> keras.Model:
        """Build pixels [B, side, side, 3] -> {"scores", "boxes"}: both heads over windows at fine or coarse stride.

        Shares its variables with the parts. Without `side` the input may have any size that holds a window.
        """
        pixels = keras.Input((side, side, 3), name="pixels")
        maps = self.head_maps(pixels)
        outputs = {
            "scores": DenseHead(self.classifier, self.preset, fine, name="scores")(maps),
            "boxes": DenseHead(self.regressor, self.preset, fine, name="boxes")(maps),
        }
        return keras.Model(pixels, outputs, name=self.preset.name)

    def head_maps(self, pixels: keras.KerasTensor) -> keras.KerasTensor:
        """Compute what the heads see of pixels [B, H, W, 3], before its pooling: features, and their context if any."""
        maps = self.features(pixels)
        if not self.context:
            return maps
        return Context(self.preset, name="context")(maps, self.features(layers.AveragePooling2D(2)(pixels)))

    def _regressor(self, weights: bool) -> keras.Model:
        outputs = 4 * self.num_classes if self.per_class else 4
        with tf.init_scope():  # a trace may be the first to ask
            return _head(self.preset, "regressor", self.preset.regressor, outputs, "box", weights, self.context)


class Conv2D(layers.Conv2D):
    """A full layer as a convolution (3.5), computed as a matrix product where a map is a single window to it.

    On a CPU the convolution of a map no larger than its kernel, and its gradient, come to a quarter of the rate. It
    has the name of Keras's own because Keras files weights under it.
    """

    def call(self, inputs):
        if self.kernel_size not in ((1, 1), tuple(inputs.shape[1:3])):
            return super().call(inputs)
        sides = keras.ops.shape(inputs)[1:3] if self.kernel_size == (1, 1) else (1, 1)
        kernel = keras.ops.reshape(self.kernel, [-1, self.filters])
        product = keras.ops.matmul(keras.ops.reshape(inputs, [-1, kernel.shape[0]]), kernel) + self.bias
        return keras.ops.reshape(product, [-1, *sides, self.filters])


class DenseHead(layers.Layer):
    """Slide a head over unpooled feature maps [B, n, m, C] at fine or coarse stride (3.3 b-e), to be trained.

    Returns [B, n - k m + 1, ..., D] for a last pooling of side k and a head kernel of m; at coarse stride every
    k-th of these. Inference computes the same as one matrix product: `overfeat_tf.compute.dense`.
    """

    def __init__(self, head: keras.Model, preset: Preset, fine: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.head, self.preset, self.fine = head, preset, fine

    def call(self, maps, training=None):
        pool = self.preset.last_pool
        if not self.fine:
            return self.head(layers.MaxPooling2D(pool)(maps) if pool > 1 else maps, training=training)
        height, width = (keras.ops.shape(maps)[axis] - pool * self.preset.head_kernel + 1 for axis in (1, 2))
        return interleave(self.head(offset_max_pool(maps, pool), training=training), pool, height, width)

    def compute_output_shape(self, input_shape):
        pool, kernel = self.preset.last_pool, self.preset.head_kernel
        fine = [None if n is None else n - pool * kernel + 1 for n in input_shape[1:3]]
        sides = [None if n is None else n if self.fine else -(-n // pool) for n in fine]
        return (input_shape[0], *sides, self.head.output_shape[-1])


def build(
    preset: Preset | str,
    num_classes: int,
    background: bool = False,
    per_class: bool = False,
    weights: bool = True,
    box_form: str = BOX_FORMS[0],
    context: bool = False,
) -> Network:
    """Build a network with fresh weights.

    Args:
        preset: A preset or its name.
        num_classes: Object classes.
        background: Add the background class of detection (5) as output 0 of the classifier.
        per_class: Let the regressor have a box for each class (PCR) rather than one for all (SCR; 4.3).
        weights: Draw the initial weights. False leaves zeros in features and classifier, for others to be loaded:
            drawing takes seconds, and for a moment three times their memory.
        box_form: How the regressor tells a box, one of `boxes.BOX_FORMS`.
        context: Let the heads also see the features of half the resolution (5).

    Raises:
        ValueError: unknown preset or form, no class, or a window too small for context.
    """
    preset = get_preset(preset) if isinstance(preset, str) else preset
    if num_classes < 1:
        raise ValueError(f"expected at least one class; got {num_classes}")
    if box_form not in BOX_FORMS:
        raise ValueError(f"expected box_form to be one of {', '.join(BOX_FORMS)}; got '{box_form}'")
    if context and preset.feature_side(preset.window // 2) < 1:
        raise ValueError(f"expected a window for context of which half has features; '{preset.name}' is too small")
    return Network(
        preset=preset,
        num_classes=num_classes,
        background=background,
        per_class=per_class,
        box_form=box_form,
        context=context,
        features=_features(preset, weights),
        classifier=_head(preset, "classifier", preset.full, num_classes + background, "scores", weights, context),
    )


def _initializer(std: float | None, weights: bool):
    if not weights:
        return "zeros"
    return "he_normal" if std is None else keras.initializers.RandomNormal(stddev=std)


def _features(preset: Preset, weights: bool) -> keras.Model:
    pixels = keras.Input((None, None, 3), name="pixels")
    x = layers.Rescaling(1.0 / preset.std, -preset.mean / preset.std, name="normalise")(pixels)
    for number, row in enumerate(preset.convs, start=1):
        if row.padding:
            x = layers.ZeroPadding2D(row.padding, name=f"pad{number}")(x)
        initializer = _initializer(preset.init_std, weights)
        x = layers.Conv2D(row.channels, row.kernel, row.stride, kernel_initializer=initializer, name=f"conv{number}")(x)
        x = layers.ReLU(name=f"relu{number}")(x)
        if row.pool > 1 and number < len(preset.convs):  # the last pooling belongs to the heads: 3.3
            x = layers.MaxPooling2D(row.pool, name=f"pool{number}")(x)
    return keras.Model(pixels, x, name="features")


def _head(
    preset: Preset, name: str, hidden: tuple[int, int], outputs: int, last: str, weights: bool, context: bool
) -> keras.Model:
    """Build two hidden full layers and a linear one, as convolutions (3.5)."""
    prefix = "full" if name == "classifier" else "regress"
    maps = keras.Input((None, None, preset.convs[-1].channels * (1 + context)), name="pooled")
    x = maps
    for number, channels in enumerate(hidden, start=len(preset.convs) + 1):
        kernel = preset.head_kernel if x is maps else 1
        initializer = _initializer(preset.init_std, weights)
        x = Conv2D(channels, kernel, kernel_initializer=initializer, name=f"{prefix}{number}")(x)
        x = layers.ReLU(name=f"{prefix}{number}_relu")(x)
        if name == "classifier":
            x = layers.Dropout(preset.dropout, name=f"{prefix}{number}_dropout")(x)
    x = Conv2D(outputs, 1, kernel_initializer=_initializer(INIT_STD, weights), name=last)(x)
    return keras.Model(maps, x, name=name)
