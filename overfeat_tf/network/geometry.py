"""Windows and strides in whole pixels (3.3, Table 5); no TensorFlow.

With the last pooling taken at every offset, window (i, j) covers the pixels [i * s, i * s + window) by
[j * s, j * s + window) of the input, s being the fine stride; at one offset alone s is the coarse stride.
"""

from overfeat_tf.network.presets import Preset


def suit_side(preset: Preset, side: float) -> int:
    """Return the side nearest to `side` pixels for which every offset of the last pooling gives the same map.

    Those are 245 + 36 k for `accurate`, 247 + 32 k for `fast` (3.3).
    """
    steps = max(0, round((side - preset.smallest_input) / preset.coarse_stride))
    return preset.smallest_input + preset.coarse_stride * steps


def stride(preset: Preset, fine: bool = True) -> int:
    """Return the pixels from one window to the next."""
    return preset.fine_stride if fine else preset.coarse_stride


def window_count(preset: Preset, side: int, fine: bool = True) -> int:
    """Count the windows along an input of `side` pixels; 0 where none fits."""
    fine_count = max(0, preset.feature_side(side) - preset.last_pool * preset.head_kernel + 1)
    return fine_count if fine else -(-fine_count // preset.last_pool)
