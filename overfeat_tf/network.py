"""The ConvNet as Keras functional models: features, classifier head, regressor head, and the whole."""

from dataclasses import dataclass
from functools import cached_property

import keras
import tensorflow as tf
from keras import layers

from overfeat_tf.offset_pooling import interleave, offset_max_pool
from overfeat_tf.presets import INIT_STD, Preset, get_preset


@dataclass(frozen=True)
class Network:
    """One network of the paper's kind; its three parts share nothing but the maps that pass between them.

    Attributes:
        preset: The tables that it was built from.
        num_classes: Object classes, without the background.
        background: Whether the classifier's output 0 is the background class of detection (5).
        features: Pixels [B, H, W, 3], 0..255, to the last feature map before its pooling [B, n, m, C].
        classifier: Pooled map [B, p, q, C] to class scores before softmax [B, p - kernel + 1, q - kernel + 1,
            classes].
        regressor: Pooled map to the box edges (top, left, bottom, right) in window sides, [B, ..., ..., 4] (4).
    """

    preset: Preset
    num_classes: int
    background: bool
    features: keras.Model
    classifier: keras.Model
    regressor: keras.Model

    @property
    def embedding(self) -> keras.Model:
        """Pooled map to the classifier's second full layer before its rectifier: the release's features (3.2)."""
        name = f"full{len(self.preset.convs) + 2}"
        return keras.Model(self.classifier.input, self.classifier.get_layer(name).output, name="embedding")

    @cached_property
    def dense(self) -> tf.types.experimental.PolymorphicFunction:
        """Run features and heads over every window: a tf.function of (pixels, fine, with_boxes).

        Pixels float32 [B, H, W, 3] to class scores before softmax [B, h, w, classes] and box edges [B, h, w, 4] in
        window sides (None without boxes). One function for all sizes, so that a pyramid is traced once, not once a
        scale.
        """

        def run(pixels: tf.Tensor, fine: bool, with_boxes: bool) -> tuple[tf.Tensor, tf.Tensor | None]:
            maps = self.features(pixels, training=False)
            logits = apply_head(self.classifier, maps, self.preset, fine, training=False)
            edges = apply_head(self.regressor, maps, self.preset, fine, training=False) if with_boxes else None
            return logits, edges

        return tf.function(run, autograph=False, reduce_retracing=True)

    def whole(self, side: int | None = None, fine: bool = True) -> keras.Model:
        """Build pixels [B, side, side, 3] -> {"scores", "boxes"}: both heads over windows at fine or coarse stride.

        Shares its variables with the parts. Without `side` the input may have any size that holds a window.
        """
        pixels = keras.Input((side, side, 3), name="pixels")
        maps = self.features(pixels)
        outputs = {
            "scores": DenseHead(self.classifier, self.preset, fine, name="scores")(maps),
            "boxes": DenseHead(self.regressor, self.preset, fine, name="boxes")(maps),
        }
        return keras.Model(pixels, outputs, name=self.preset.name)


class DenseHead(layers.Layer):
    """Slide a head over unpooled feature maps [B, n, m, C] at fine or coarse stride (3.3 b-e).

    Returns [B, n - k m + 1, ..., D] for a last pooling of side k and a head kernel of m; at coarse stride every
    k-th of these.
    """

    def __init__(self, head: keras.Model, preset: Preset, fine: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.head, self.preset, self.fine = head, preset, fine

    def call(self, maps, training=None):
        return apply_head(self.head, maps, self.preset, self.fine, training)

    def compute_output_shape(self, input_shape):
        pool, kernel = self.preset.last_pool, self.preset.head_kernel
        fine = [None if n is None else n - pool * kernel + 1 for n in input_shape[1:3]]
        sides = [None if n is None else n if self.fine else -(-n // pool) for n in fine]
        return (input_shape[0], *sides, self.head.output_shape[-1])


def apply_head(head, maps, preset: Preset, fine: bool = True, training=None):
    """Apply a head to unpooled feature maps [B, n, m, C] at every window: see `DenseHead`."""
    pool = preset.last_pool
    if not fine:
        return head(layers.MaxPooling2D(pool)(maps) if pool > 1 else maps, training=training)
    height, width = (keras.ops.shape(maps)[axis] - pool * preset.head_kernel + 1 for axis in (1, 2))
    return interleave(head(offset_max_pool(maps, pool), training=training), pool, height, width)


def build(preset: Preset | str, num_classes: int, background: bool = False) -> Network:
    """Build a network with fresh weights.

    Args:
        preset: A preset or its name.
        num_classes: Object classes.
        background: Add the background class of detection (5) as output 0 of the classifier.

    Raises:
        ValueError: unknown preset, or no class.
    """
    preset = get_preset(preset) if isinstance(preset, str) else preset
    if num_classes < 1:
        raise ValueError(f"expected at least one class; got {num_classes}")
    features = _features(preset)
    return Network(
        preset=preset,
        num_classes=num_classes,
        background=background,
        features=features,
        classifier=_head(preset, "classifier", preset.full, num_classes + background, "scores"),
        regressor=_head(preset, "regressor", preset.regressor, 4, "box"),
    )


def _convolution(channels: int, kernel: int, name: str, std: float | None, **kwargs) -> layers.Layer:
    initializer = "he_normal" if std is None else keras.initializers.RandomNormal(stddev=std)
    return layers.Conv2D(channels, kernel, kernel_initializer=initializer, name=name, **kwargs)


def _features(preset: Preset) -> keras.Model:
    pixels = keras.Input((None, None, 3), name="pixels")
    x = layers.Rescaling(1.0 / preset.std, -preset.mean / preset.std, name="normalise")(pixels)
    for number, row in enumerate(preset.convs, start=1):
        if row.padding:
            x = layers.ZeroPadding2D(row.padding, name=f"pad{number}")(x)
        x = _convolution(row.channels, row.kernel, f"conv{number}", preset.init_std, strides=row.stride)(x)
        x = layers.ReLU(name=f"relu{number}")(x)
        if row.pool > 1 and number < len(preset.convs):  # the last pooling belongs to the heads: 3.3
            x = layers.MaxPooling2D(row.pool, name=f"pool{number}")(x)
    return keras.Model(pixels, x, name="features")


def _head(preset: Preset, name: str, hidden: tuple[int, int], outputs: int, last: str) -> keras.Model:
    """Build two hidden full layers and a linear one, as convolutions (3.5)."""
    prefix = "full" if name == "classifier" else "regress"
    maps = keras.Input((None, None, preset.convs[-1].channels), name="pooled")
    x = maps
    for number, channels in enumerate(hidden, start=len(preset.convs) + 1):
        kernel = preset.head_kernel if x is maps else 1
        x = _convolution(channels, kernel, f"{prefix}{number}", preset.init_std)(x)
        x = layers.ReLU(name=f"{prefix}{number}_relu")(x)
        if name == "classifier":
            x = layers.Dropout(preset.dropout, name=f"{prefix}{number}_dropout")(x)
    return keras.Model(maps, _convolution(outputs, 1, last, INIT_STD)(x), name=name)
