"""The heads as Keras models, and how they slide over feature maps at fine stride in training (3.3, 3.5).

Pooling k x k regions without overlap, once from each offset (dy, dx) in {0..k-1}^2 (Fig. 3), is pooling with stride 1
and sorting the cells by their coordinates modulo k: TensorFlow's `space_to_batch`, which `batch_to_space` undoes.
"""

import keras
import tensorflow as tf
from keras import layers

from overfeat_tf.network.backbone import INIT_STD, initializer
from overfeat_tf.network.presets import Preset


def build_head(preset: Preset, part: str, outputs: int, context: bool = False, weights: bool = True) -> keras.Model:
    """Build "classifier" or "regressor": hidden full layers and a linear one, as convolutions (3.5).

    Args:
        preset: The network's tables.
        part: Which of the two; the classifier has dropout.
        outputs: Channels of the linear layer.
        context: Whether the maps also hold the features of half the resolution (5).
        weights: Draw the initial weights; zeros if not.
    """
    *hidden, last = preset.head(part, outputs, context)
    x = maps = keras.Input((None, None, [*hidden, last][0].inputs), name="pooled")
    for row in hidden:
        draw = initializer(preset.init_std, weights)
        x = Conv2D(row.channels, row.kernel, kernel_initializer=draw, name=row.name)(x)
        x = layers.ReLU(name=f"{row.name}_relu")(x)
        if part == "classifier":
            x = layers.Dropout(preset.dropout, name=f"{row.name}_dropout")(x)
    x = Conv2D(outputs, last.kernel, kernel_initializer=initializer(INIT_STD, weights), name=last.name)(x)
    return keras.Model(maps, x, name=part)


@keras.saving.register_keras_serializable("overfeat_tf")
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


@keras.saving.register_keras_serializable("overfeat_tf")
class DenseHead(layers.Layer):
    """Slide a head over unpooled feature maps [B, n, m, C] at fine or coarse stride (3.3 b-e), to be trained.

    Returns [B, n - k m + 1, ..., D] for a last pooling of side k and a head kernel of m; at coarse stride every
    k-th of these. Inference computes the same as one matrix product: `overfeat_tf.compute.dense`.

    Args:
        head: The head.
        pool, kernel: Side k of the last pooling, and m of the pooled map of one window.
        fine: Fine stride, or coarse.
    """

    def __init__(self, head: keras.Model, pool: int, kernel: int, fine: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.head, self.pool, self.kernel, self.fine = head, pool, kernel, fine

    @classmethod
    def of(cls, head: keras.Model, preset: Preset, fine: bool = True, **kwargs) -> "DenseHead":
        """Make the layer for a network's head."""
        return cls(head, preset.last_pool, preset.head_kernel, fine, **kwargs)

    def call(self, maps, training=None):
        if not self.fine:
            return self.head(layers.MaxPooling2D(self.pool)(maps) if self.pool > 1 else maps, training=training)
        height, width = (keras.ops.shape(maps)[axis] - self.pool * self.kernel + 1 for axis in (1, 2))
        return interleave(self.head(offset_max_pool(maps, self.pool), training=training), self.pool, height, width)

    def compute_output_shape(self, input_shape):
        fine = [None if n is None else n - self.pool * self.kernel + 1 for n in input_shape[1:3]]
        sides = [None if n is None else n if self.fine else -(-n // self.pool) for n in fine]
        return (input_shape[0], *sides, self.head.output_shape[-1])

    def get_config(self):
        head = keras.saving.serialize_keras_object(self.head)
        return {**super().get_config(), "head": head, "pool": self.pool, "kernel": self.kernel, "fine": self.fine}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "head": keras.saving.deserialize_keras_object(config["head"])})


def offset_max_pool(maps: tf.Tensor, pool: int) -> tf.Tensor:
    """Pool feature maps [B, n, m, C] at every offset.

    Returns:
        [k * k * B, ceil((n - k + 1) / k), ceil((m - k + 1) / k), C], offset-major: the maps of offset (dy, dx)
        are rows (dy * k + dx) * B onwards. Where n - k + 1 is no multiple of k, the offsets that give a smaller
        map are filled with zeros at the end, which `interleave` cuts off again.
    """
    if pool == 1:
        return maps
    dense = tf.nn.max_pool2d(maps, pool, strides=1, padding="VALID")
    sides = tf.shape(dense)[1:3]
    paddings, _ = tf.required_space_to_batch_paddings(sides, [pool, pool])
    dealt = tf.space_to_batch(dense, [pool, pool], paddings)
    return tf.ensure_shape(dealt, [None, None, None, maps.shape[-1]])


def interleave(outputs: tf.Tensor, pool: int, height: tf.Tensor | int, width: tf.Tensor | int) -> tf.Tensor:
    """Interleave the head's outputs [k * k * B, p, q, D] at all offsets into [B, height, width, D] (3.3 e).

    Args:
        outputs: What the head gives for `offset_max_pool`'s maps.
        pool: The last pooling's side k.
        height, width: Windows along each side at fine stride: n - k * (head kernel) + 1 for a map of side n.
    """
    if pool == 1:
        return outputs
    sides = tf.shape(outputs)[1:3] * pool
    crops = tf.stack([[0, sides[0] - height], [0, sides[1] - width]])
    collected = tf.batch_to_space(outputs, [pool, pool], crops)
    return tf.ensure_shape(collected, [None, None, None, outputs.shape[-1]])
