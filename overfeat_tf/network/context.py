"""Context (5): each scale also takes a lower-resolution scale as input.

The paper says no more than this. Here a halved view goes through the same features, and its map is interpolated at the
places of the view's own map: a cell that a head sees has C channels at the scale's own resolution and C at half of it,
whose receptive fields reach twice as far, beyond the window. The lower resolution is half of the view rather than the
pyramid's next scale, so that a view's answer depends on the view alone, for training views, crops and any choice of
scales. The views of the first stage are single windows, whose context ends at their border; the spatial stages learn
from the context beyond it.
"""

import keras
import tensorflow as tf
from keras import layers

from overfeat_tf.network.presets import Preset


def halve(pixels: tf.Tensor) -> tf.Tensor:
    """Halve pixels float32 [B, H, W, 3] by averaging; of an odd side the last pixel is left out."""
    return tf.nn.avg_pool2d(pixels, 2, 2, "VALID")


def add_context(first: float, maps: tf.Tensor, lower: tf.Tensor) -> tf.Tensor:
    """Concatenate the map of a halved view to that of the view.

    Args:
        first: The network's `first_cell`.
        maps: [B, n, m, C], a view's last feature map before its pooling.
        lower: [B, p, q, C], the halved view's.

    Returns:
        [B, n, m, 2 C]: `maps`, and `lower` interpolated linearly at the same places of the image.
    """
    rows, columns = (_interpolation(first, tf.shape(maps)[i], tf.shape(lower)[i], maps.dtype) for i in (1, 2))
    down = tf.einsum("np,bpqc->bnqc", rows, lower)
    return tf.concat([maps, tf.einsum("mq,bnqc->bnmc", columns, down)], axis=-1)


def first_cell(preset: Preset) -> float:
    """Return where a map's first cell looks, in strides from the view's first pixel.

    A window's middle is that of its cells, so cell i looks at the pixel stride * (i + first), in either view.
    """
    return preset.window / (2 * preset.fine_stride) - (preset.last_pool * preset.head_kernel - 1) / 2


def _interpolation(first: float, cells: tf.Tensor, lower: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Return the weights [cells, lower] that interpolate the halved view's map at a map's cells along one axis."""
    places = (tf.range(cells, dtype=tf.float32) - first) / 2.0
    places = tf.clip_by_value(places, 0.0, tf.cast(lower, tf.float32) - 1.0)
    apart = tf.abs(places[:, None] - tf.range(lower, dtype=tf.float32))
    return tf.cast(tf.maximum(1.0 - apart, 0.0), dtype)


@keras.saving.register_keras_serializable("overfeat_tf")
class Context(layers.Layer):
    """`add_context` in a Keras model."""

    def __init__(self, first: float, **kwargs):
        super().__init__(**kwargs)
        self.first = first

    def call(self, maps, lower):
        return add_context(self.first, maps, lower)

    def compute_output_shape(self, maps_shape, lower_shape):
        return (*maps_shape[:3], maps_shape[3] + lower_shape[3])

    def get_config(self):
        return {**super().get_config(), "first": self.first}
