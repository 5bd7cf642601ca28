"""Max pooling at every offset, and the interleaving that restores the fine grid (3.3, Fig. 3).

Pooling k x k regions without overlap, once from each offset (dy, dx) in {0..k-1}^2, is pooling with stride 1 and
dealing the result out by its coordinates modulo k; TensorFlow's space-to-batch deals, batch-to-space collects.
"""

import tensorflow as tf


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
