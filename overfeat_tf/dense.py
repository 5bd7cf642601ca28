"""The network run densely: its large layers as matrix products over all maps, offsets, scales and flips (3.3, 3.5).

A head's first full layer sees k-apart cells of the last feature map pooled with stride 1 (k the last pooling's side):
window (i, j) takes the m x m cells from (i, j). Gathering each window's cells into a row makes the layer a plain matrix
product, whose rate on a CPU is nearly twice that of the dilated convolution that it stands for, and whose rows come
out interleaved (3.3 e) as they are. The windows of every map share it, since one of few rows waits for its weights: 9
rows against `accurate`'s first layer reach a quarter of the rate of 300. The variables stay the convolutions that are
trained; only their shape is read otherwise. The last feature layers go the same way where their weights outgrow a
CPU's caches.
"""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from overfeat_tf.context import add_context, halve
from overfeat_tf.network import Network, is_wide
from overfeat_tf.presets import Preset

# Rows gathered at a time: 2600 of `accurate`'s 25600 numbers, its six scales at once; bounds memory on huge maps.
ROW_BYTES = 1 << 28


class Windows(NamedTuple):
    """The windows of some maps, in order.

    Attributes:
        cells: float32 [n, C], the cells of all maps, row by row.
        places: int32 [windows, m * m], which cells each window sees.
        shapes: For each map, int32 [3]: its images, and its windows down and across.
    """

    cells: tf.Tensor
    places: tf.Tensor
    shapes: list[tf.Tensor]

    def split(self, values: tf.Tensor) -> list[tf.Tensor]:
        """Deal values of all windows [windows, ...] out to the maps: [B, h, w, ...] each."""
        parts = tf.split(values, [tf.reduce_prod(shape) for shape in self.shapes], num=len(self.shapes))
        rest = values.shape[1:]
        return [
            tf.ensure_shape(tf.reshape(part, tf.concat([shape, rest], axis=0)), [None, None, None, *rest])
            for part, shape in zip(parts, self.shapes, strict=True)
        ]


def feature_maps(network: Network, pixels: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Compute the last feature maps before their pooling, [B, n, m, C] each, for pixels float32 [B, H, W, 3] each."""
    maps = [network.trunk(each) for each in pixels]
    for layer in network.tail:
        if is_wide(layer):
            windows = _gather_windows(maps, layer.kernel_size[0], 1)
            maps = windows.split(_run_pieces([[layer]], windows)[0])
        else:
            maps = [layer(each) for each in maps]
    return maps


def head_maps(network: Network, pixels: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Compute what the heads see, before its pooling: `feature_maps`, with their context where the network has it."""
    if not network.context:
        return feature_maps(network, pixels)
    maps = feature_maps(network, [*pixels, *(halve(each) for each in pixels)])
    pairs = zip(maps[: len(pixels)], maps[len(pixels) :], strict=True)
    return [add_context(network.preset, each, lower) for each, lower in pairs]


def find_windows(preset: Preset, maps: Sequence[tf.Tensor], fine: bool = True) -> Windows:
    """Pool feature maps [B, n, m, C] and list their windows at fine or coarse stride.

    A map of side n has n - k m + 1 windows along it at fine stride, every k-th of these at coarse stride; none where
    the map is smaller than a window.
    """
    pool = preset.last_pool
    stride, apart = (1, pool) if fine else (pool, 1)
    pooled = [tf.nn.max_pool2d(m, pool, stride, "VALID") if pool > 1 else m for m in maps]
    return _gather_windows(pooled, preset.head_kernel, apart)


def run_heads(heads: Sequence[keras.Model], windows: Windows, until: str | None = None) -> list[tf.Tensor]:
    """Run heads over windows.

    Args:
        heads: Models of `Network.classifier`'s kind, that share the gathered rows.
        windows: What `find_windows` gives.
        until: Name of the layer whose output to give; the last one if None.

    Returns:
        For each head float32 [windows, D].
    """
    return _run_pieces([_until(head, until) for head in heads], windows)


def _until(head: keras.Model, name: str | None) -> list[keras.layers.Layer]:
    names = [layer.name for layer in head.layers]
    return head.layers[: names.index(name) + 1 if name else None]


def _gather_windows(maps: Sequence[tf.Tensor], kernel: int, apart: int) -> Windows:
    """List the windows of kernel x kernel cells, `apart` from one to the next, at every place of maps [B, n, m, C]."""
    places, shapes, start = [], [], tf.constant(0)
    for cells in maps:
        images, height, width = tf.unstack(tf.shape(cells)[:3])
        down, across = (tf.maximum(side - apart * (kernel - 1), 0) for side in (height, width))
        origins = (tf.range(images)[:, None, None] * height + tf.range(down)[:, None]) * width + tf.range(across)
        steps = apart * (tf.range(kernel)[:, None] * width + tf.range(kernel))
        places.append(start + tf.reshape(origins, [-1, 1]) + tf.reshape(steps, [-1]))
        shapes.append(tf.stack([images, down, across]))
        start += images * height * width
    flat = [tf.reshape(cells, [-1, cells.shape[-1]]) for cells in maps]
    return Windows(tf.concat(flat, axis=0), tf.concat(places, axis=0), shapes)


def _run_pieces(stacks: Sequence[Sequence[keras.layers.Layer]], windows: Windows) -> list[tf.Tensor]:
    """Run stacks of layers, the first ones as large as a window, over the windows' rows, a bounded piece at a time."""
    kernel, channels = windows.places.shape[1], windows.cells.shape[1]
    limit = max(1, ROW_BYTES // (4 * kernel * channels))
    count = tf.shape(windows.places)[0]
    # Pieces of equal length, filled up with windows that are cut off again.
    pieces = tf.maximum((count + limit - 1) // limit, 1)
    length = (count + pieces - 1) // pieces
    filled = tf.pad(windows.places, [[0, pieces * length - count], [0, 0]])

    def run(places: tf.Tensor) -> list[tf.Tensor]:
        rows = tf.reshape(tf.gather(windows.cells, places), [-1, kernel * channels])
        return [_run_layers(layers, rows) for layers in stacks]

    widths = [layers[-1].output.shape[-1] for layers in stacks]
    specs = [tf.TensorSpec([None, width], tf.float32) for width in widths]
    outputs = tf.map_fn(
        run, tf.reshape(filled, [pieces, length, kernel]), fn_output_signature=specs, parallel_iterations=1
    )
    return [tf.reshape(output, [-1, width])[:count] for output, width in zip(outputs, widths, strict=True)]


def _run_layers(layers: Sequence[keras.layers.Layer], rows: tf.Tensor) -> tf.Tensor:
    for layer in layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel = tf.convert_to_tensor(layer.kernel.value)
            rows = tf.nn.bias_add(tf.matmul(rows, tf.reshape(kernel, [-1, layer.filters])), layer.bias.value)
        elif isinstance(layer, keras.layers.ReLU):
            rows = tf.nn.relu(rows)
    return rows
