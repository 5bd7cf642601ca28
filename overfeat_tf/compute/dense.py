"""The network run densely: its large layers as matrix products over all maps, offsets, scales and flips (3.3, 3.5).

A head's first full layer sees cells k apart of the last feature map pooled with stride 1 (k the last pooling's side):
window (i, j) takes the m x m cells from (i, j). Gathering each window's cells into a row makes the layer a plain matrix
product, whose rate on a CPU is nearly twice that of the dilated convolution that it stands for, and whose rows come
out interleaved (3.3 e) as they are. The windows of every map share one product, since a product of few rows waits for
its weights: 9 rows against `accurate`'s first layer reach a quarter of the rate of 300. The variables stay the
convolutions that are trained; only their shape is read differently. The last feature layers are computed the same way
where their weights outgrow a CPU's caches. With Winograd's arithmetic such layers, and further ones, are computed by
tiles of windows rather than rows (`winograd`), wherever there are enough windows for it to pay (`execution`).
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from typing import NamedTuple

import keras
import tensorflow as tf

from overfeat_tf.compute.execution import Execution, Shape, direct_cost, execution_of, is_wide, winograd_cost
from overfeat_tf.compute.winograd import lay_tiles, run_tiles, tiles_along
from overfeat_tf.network.context import add_context, first_cell, halve
from overfeat_tf.network.convnet import PIXELS, Network
from overfeat_tf.network.presets import Preset
from overfeat_tf.options import ARITHMETICS

# Rows gathered at a time: 2600 of `accurate`'s 25600 numbers, its six scales at once; bounds memory on huge maps.
ROW_BYTES = 1 << 28
DIRECT = ARITHMETICS[0]


class Windows(NamedTuple):
    """The windows of some maps, in order: `taps` x `taps` cells, `dilation` from one to the next, at every place.

    Attributes:
        cells: float32 or bfloat16 [n, C], the cells of all maps, row by row.
        maps: int32 [maps, 3], the images, and the cells down and across, of each map.
        shapes: int32 [maps, 3], the images, and the windows down and across, of each map.
        taps: Cells along a window's side.
        dilation: Cells from one of these to the next.
    """

    cells: tf.Tensor
    maps: tf.Tensor
    shapes: tf.Tensor
    taps: int
    dilation: int

    @property
    def counts(self) -> tf.Tensor:
        """Count the windows of each map: int32 [maps]."""
        return tf.reduce_prod(self.shapes, axis=1)

    def places(self) -> tf.Tensor:
        """List which cells each window sees: int32 [windows, taps * taps]."""
        firsts = tf.cumsum(tf.reduce_prod(self.maps, axis=1), exclusive=True)
        each = _places_of(self.taps, self.dilation)
        number = self.maps.shape[0]
        return tf.concat(
            [each(*one) for one in zip(*(tf.unstack(t, number) for t in (self.maps, firsts)), strict=True)], axis=0
        )

    def tiles(self, side: int) -> tf.Tensor:
        """Count the tiles of `side` x `side` windows that hold them all: int32 scalar."""
        images, down, across = tf.unstack(self.shapes, axis=1)
        return tf.reduce_sum(images * tiles_along(down, self.dilation, side) * tiles_along(across, self.dilation, side))

    def split(self, values: tf.Tensor) -> list[tf.Tensor]:
        """Split values of all windows [windows, ...] by map: [B, h, w, ...] each."""
        number, rest = self.shapes.shape[0], values.shape[1:]
        parts = zip(tf.split(values, self.counts, num=number), tf.unstack(self.shapes, number), strict=True)
        return [
            tf.ensure_shape(tf.reshape(part, tf.concat([shape, rest], axis=0)), [None, None, None, *rest])
            for part, shape in parts
        ]


@cache
def _places_of(taps: int, dilation: int) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Return the tf.function that lists `Windows.places` of one map, int32 [3], given the number of its first cell.

    All maps of all layers and signatures share it: tracing the indices of each map would make most of a graph.
    """

    def places(shape: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        images, height, width = tf.unstack(shape)
        down, across = (tf.maximum(side - dilation * (taps - 1), 0) for side in (height, width))
        origins = (tf.range(images)[:, None, None] * height + tf.range(down)[:, None]) * width + tf.range(across)
        steps = dilation * (tf.range(taps)[:, None] * width + tf.range(taps))
        return first + tf.reshape(origins, [-1, 1]) + tf.reshape(steps, [-1])

    return tf.function(places, [tf.TensorSpec([3], tf.int32), tf.TensorSpec([], tf.int32)], autograph=False)


def feature_maps(network: Network, pixels: Sequence[tf.Tensor], arithmetic: str = DIRECT) -> list[tf.Tensor]:
    """Compute the last feature maps before their pooling, [B, n, m, C] each, for pixels float32 [B, H, W, 3] each.

    They are bfloat16 where the arithmetic is, else float32.
    """
    execution = execution_of(network, arithmetic)
    if len(pixels) not in execution.traced:  # shared by every task and signature that scans as many views

        def run(*pixels: tf.Tensor) -> list[tf.Tensor]:
            with execution.computing():
                maps = [execution.trunk(each) for each in pixels]
                for layer in execution.tail:
                    joined = execution.joins(layer)
                    maps = _convolve(execution, layer, maps) if joined else [layer(each) for each in maps]
                return maps

        execution.traced[len(pixels)] = tf.function(run, PIXELS * len(pixels), autograph=False)
    return execution.traced[len(pixels)](*pixels)


def head_maps(network: Network, pixels: Sequence[tf.Tensor], arithmetic: str = DIRECT) -> list[tf.Tensor]:
    """Compute what the heads see, before its pooling: `feature_maps`, with their context where the network has it."""
    if not network.context:
        return feature_maps(network, pixels, arithmetic)
    maps = feature_maps(network, [*pixels, *(halve(each) for each in pixels)], arithmetic)
    pairs = zip(maps[: len(pixels)], maps[len(pixels) :], strict=True)
    return [add_context(first_cell(network.preset), each, lower) for each, lower in pairs]


def find_windows(preset: Preset, maps: Sequence[tf.Tensor], fine: bool = True) -> Windows:
    """Pool feature maps [B, n, m, C] and list their windows at fine or coarse stride.

    A map of side n has n - k m + 1 windows along it at fine stride, every k-th of these at coarse stride; none where
    the map is smaller than a window.
    """
    pool = preset.last_pool
    stride, dilation = (1, pool) if fine else (pool, 1)
    pooled = [tf.nn.max_pool2d(m, pool, stride, "VALID") if pool > 1 else m for m in maps]
    return windows_of(pooled, preset.head_kernel, dilation)


def run_heads(
    heads: Sequence[keras.Model], windows: Windows, until: str | None = None, execution: Execution | None = None
) -> list[tf.Tensor]:
    """Run heads over windows.

    Args:
        heads: Models of `Network.classifier`'s kind, that share the gathered rows or tiles.
        windows: What `find_windows` gives.
        until: Name of the layer whose output to give; the last one if None.
        execution: How the network that they are of is run; directly, in the windows' own type, if None.

    Returns:
        For each head float32 [windows, D].
    """
    stacks = [_until(head, until) for head in heads]

    def directly() -> list[tf.Tensor]:
        return _run_pieces(stacks, windows)

    with execution.computing() if execution else nullcontext():
        return [tf.cast(found, tf.float32) for found in _by_tiles_or(directly, stacks, execution, windows)]


def _until(head: keras.Model, name: str | None) -> list[keras.layers.Layer]:
    names = [layer.name for layer in head.layers]
    return head.layers[: names.index(name) + 1 if name else None]


def _first(stack: Sequence[keras.layers.Layer]) -> keras.layers.Conv2D:
    return next(layer for layer in stack if isinstance(layer, keras.layers.Conv2D))


def _convolve(execution: Execution, layer: keras.layers.Conv2D, maps: list[tf.Tensor]) -> list[tf.Tensor]:
    """Run a convolution of stride 1 over padded maps [B, n, m, C], over all of them at once where that is faster."""
    windows = windows_of(maps, layer.kernel_size[0], 1)

    def directly() -> list[tf.Tensor]:
        if is_wide(layer):
            return windows.split(_run_pieces([[layer]], windows)[0])
        return [layer(each) for each in maps]

    return _by_tiles_or(directly, [[layer]], execution, windows, windows.split)


def _by_tiles_or(
    directly: Callable[[], list[tf.Tensor]],
    stacks: Sequence[Sequence[keras.layers.Layer]],
    execution: Execution | None,
    windows: Windows,
    shaped: Callable[[tf.Tensor], list[tf.Tensor]] = lambda values: [values],
) -> list[tf.Tensor]:
    """Run stacks of layers by tiles where their first layers have them and the sizes make it pay, else `directly`.

    `shaped` turns the output of each stack, [windows, D], into what `directly` returns for it.
    """
    firsts = [_first(stack) for stack in stacks]
    sides = {execution.sides.get(layer.name) if execution else None for layer in firsts}
    side, *others = sides
    if side is None or others:  # some have none, or they differ
        return directly()

    def by_tiles() -> list[tf.Tensor]:
        tiles = lay_tiles(windows.maps, windows.taps, windows.dilation, side)
        kernels = [tf.convert_to_tensor(layer.kernel.value) for layer in firsts]
        found = []
        for stack, first, rows in zip(stacks, firsts, run_tiles(kernels, windows.cells, tiles, side), strict=True):
            biased = tf.nn.bias_add(rows, first.bias.value)
            found += shaped(_run_layers(stack[stack.index(first) + 1 :], biased))
        return found

    shapes = [Shape(windows.taps, windows.dilation, windows.cells.shape[1], layer.filters) for layer in firsts]
    tiles, count = (tf.cast(n, tf.float32) for n in (windows.tiles(side), tf.reduce_sum(windows.counts)))
    by_tiles_cost = sum(winograd_cost(shape, side, tiles) for shape in shapes)
    return tf.cond(by_tiles_cost < sum(direct_cost(shape, count) for shape in shapes), by_tiles, directly)


def windows_of(maps: Sequence[tf.Tensor], taps: int, dilation: int) -> Windows:
    """List the windows of taps x taps cells, `dilation` from one to the next, at every place of maps [B, n, m, C]."""
    cells = tf.concat([tf.reshape(each, [-1, each.shape[-1]]) for each in maps], axis=0)
    sizes = tf.stack([tf.shape(each)[:3] for each in maps])
    reach = tf.constant([0, 1, 1]) * dilation * (taps - 1)
    return Windows(cells, sizes, tf.maximum(sizes - reach, 0), taps, dilation)


def _run_pieces(stacks: Sequence[Sequence[keras.layers.Layer]], windows: Windows) -> list[tf.Tensor]:
    """Run stacks of layers, the first ones as large as a window, over the windows' rows, a bounded piece at a time."""
    kernel, channels = windows.taps**2, windows.cells.shape[1]
    limit = max(1, ROW_BYTES // (windows.cells.dtype.size * kernel * channels))
    places = windows.places()
    count = tf.shape(places)[0]
    # Pieces of equal length, filled up with windows that are cut off again.
    pieces = tf.maximum((count + limit - 1) // limit, 1)
    length = (count + pieces - 1) // pieces
    filled = tf.pad(places, [[0, pieces * length - count], [0, 0]])

    def run(seen: tf.Tensor) -> list[tf.Tensor]:
        rows = tf.reshape(tf.gather(windows.cells, seen), [-1, kernel * channels])
        return [_run_layers(layers, rows) for layers in stacks]

    widths = [layers[-1].output.shape[-1] for layers in stacks]
    specs = [tf.TensorSpec([None, layers[-1].output.shape[-1]], layers[-1].compute_dtype) for layers in stacks]
    outputs = tf.map_fn(
        run, tf.reshape(filled, [pieces, length, kernel]), fn_output_signature=specs, parallel_iterations=1
    )
    return [tf.reshape(output, [-1, width])[:count] for output, width in zip(outputs, widths, strict=True)]


def _run_layers(layers: Sequence[keras.layers.Layer], rows: tf.Tensor) -> tf.Tensor:
    for layer in layers:
        if isinstance(layer, keras.layers.Conv2D):
            dtype = layer.compute_dtype
            kernel, bias = (tf.cast(weights.value, dtype) for weights in (layer.kernel, layer.bias))
            rows = tf.matmul(tf.cast(rows, dtype), tf.reshape(kernel, [-1, layer.filters]))
            rows = tf.nn.bias_add(rows, bias)
        elif isinstance(layer, keras.layers.ReLU):
            rows = tf.nn.relu(rows)
    return rows
