"""What the rule of `overfeat_tf.compute.execution` expects of each layer's tiles, and what they take."""

from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from overfeat_tf.cli.benchmarks.machine import MatrixProduct, seconds
from overfeat_tf.compute.dense import Windows, find_windows, run_heads, windows_of
from overfeat_tf.compute.execution import Execution, Shape, is_wide, winograd_cost
from overfeat_tf.compute.winograd import lay_tiles, run_tiles
from overfeat_tf.network.convnet import Network

REPETITIONS = 3


def layer_table(network: Network) -> str:
    """Time each transformed layer both ways on random maps of the preset's scales, one flip; a table in Markdown."""
    lines = [
        "| layer | tiles | windows | direct, of the product's rate | transformed | expected | multiply-adds, % |",
        "| --- " * 7 + "|",
    ]
    limit = MatrixProduct()
    rows = list(_rows(network, limit))
    whole = sum(row[-1] for row in rows)
    for name, side, windows, direct, transformed, expected, work in rows:
        rates = f"{direct:.2f} | {transformed:.2f} | {expected:.2f}"
        lines.append(f"| {name} | {side} x {side} | {windows} | {rates} | {100 * work / whole:.0f} |")
    return "\n".join(lines)


def _rows(network: Network, limit: MatrixProduct) -> Iterator[tuple]:
    execution, preset = Execution(network, "transformed"), network.preset
    sizes = [preset.backbone.map_sizes(*scale) for scale in preset.scales]
    for number, row in enumerate(preset.backbone.layers):
        layer = network.features.get_layer(row.name)
        if layer.name not in execution.sides:
            continue
        reach = row.kernel - 1
        maps = [_noise(size[number][0] + reach, size[number][1] + reach, layer.kernel.shape[2]) for size in sizes]
        windows = windows_of(maps, row.kernel, 1)
        plain = _as_product(layer, windows) if is_wide(layer) else _as_convolutions(layer, maps)
        yield _row(layer, execution, windows, plain, limit)
    last = [_noise(*size[-1], preset.backbone.channels * (1 + network.context)) for size in sizes]
    windows = find_windows(preset, last)
    head = network.classifier
    first = next(layer for layer in head.layers if isinstance(layer, keras.layers.Conv2D))
    if first.name in execution.sides:
        yield _row(first, execution, windows, _as_product(first, windows), limit)


def _row(layer, execution: Execution, windows: Windows, plain: Callable, limit: MatrixProduct) -> tuple:
    side, (*_, channels, outputs) = execution.sides[layer.name], layer.kernel.shape

    def by_tiles() -> tf.Tensor:
        tiles = lay_tiles(windows.maps, windows.taps, windows.apart, side)
        return tf.reduce_max(run_tiles([tf.convert_to_tensor(layer.kernel.value)], windows.cells, tiles, side)[0])

    count, shape = int(tf.reduce_sum(windows.counts)), Shape(windows.taps, windows.apart, channels, outputs)
    work = count * windows.taps**2 * channels * outputs
    rates = []
    for way in (plain, by_tiles):
        call = _on_host(way)
        call()
        pairs = [(limit.rate(), seconds(call)) for _ in range(REPETITIONS)]
        rates.append(sorted(work / time / rate for rate, time in pairs)[REPETITIONS // 2])
    expected = work / winograd_cost(shape, side, int(windows.tiles(side)))
    return layer.name, side, count, *rates, expected, work


def _on_host(way: Callable[[], tf.Tensor]) -> Callable[[], object]:
    traced = tf.function(way, autograph=False)
    return lambda: traced().numpy()


def _as_product(layer: keras.layers.Conv2D, windows: Windows) -> Callable[[], tf.Tensor]:
    head = keras.Model(inputs := keras.Input((None, None, windows.cells.shape[1])), layer(inputs))
    return lambda: tf.reduce_max(run_heads([head], windows)[0])


def _as_convolutions(layer: keras.layers.Conv2D, maps: list[tf.Tensor]) -> Callable[[], tf.Tensor]:
    return lambda: tf.add_n([tf.reduce_max(layer(each)) for each in maps])


def _noise(height: int, width: int, channels: int) -> tf.Tensor:
    return tf.nn.relu(tf.random.stateless_normal([1, height, width, channels], [height, width]))
