"""`overfeat benchmark scan`: the dense scan against the machine's matrix product, crops, larger images and features.

Weights are random, since time and memory do not depend on them: see `rescaled_preset`.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle, islice, product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import keras
import numpy as np
import tensorflow as tf

from overfeat_tf.cli.benchmarks.harness import (
    MatrixProduct,
    Report,
    collect,
    compare_rates,
    markdown_table,
    peak_memory_gb,
    run_module,
    time_call,
)
from overfeat_tf.cli.benchmarks.inputs import (
    CLASSES,
    FILES,
    SIZE,
    noise_images,
    photographs,
    random_classifier,
    random_detector,
    write_photographs,
)
from overfeat_tf.compute.choice import choose_arithmetic
from overfeat_tf.compute.dense import Windows, feature_maps, find_windows, run_heads, windows_of
from overfeat_tf.compute.execution import Execution, Shape, is_wide, winograd_cost
from overfeat_tf.compute.winograd import lay_tiles, run_tiles
from overfeat_tf.models.loading import load, load_run
from overfeat_tf.models.model import CONFIG, Model
from overfeat_tf.network.convnet import Network
from overfeat_tf.network.presets import Preset, get_preset
from overfeat_tf.options import ARITHMETICS
from overfeat_tf.scan.pyramid import draw_scale, fit_scale

FASTER = ARITHMETICS[1:]  # than direct, on some machines
LOADS = 3  # of each version, in fresh processes
CROPS = 128  # in a batch of crops: large enough for their products to run at a good rate
NATIVE = (1500, 2000)  # pixels: large enough for windows to lie nearly everywhere; the larger image has twice each side
EXTRACTION_SCALE = 1
LAYER_REPETITIONS = 3
MODULE = "overfeat_tf.cli.benchmarks.scan"

log = logging.getLogger(__name__)


def measure(name: str, repetitions: int) -> Report:
    """Measure a preset's scan. Each repetition measures both sides of every ratio in turn."""
    photographs()  # raises now, not after the other measurements, where scikit-learn is missing
    size = get_preset(name).scales[-1]
    report = Report("scan")
    with TemporaryDirectory(prefix="overfeat-benchmark-") as folder:
        run, *versions = _write_classifiers(name, Path(folder))
        detectors = _write_detectors(name, Path(folder))
        log.info("time and memory of processes that load and scan, with flips")
        loaded = (run, *versions[1:], *detectors)
        sizes = [sum(file.stat().st_size for file in each.rglob("*") if file.is_file()) / 1e9 for each in versions[1:]]
        rounds = [[run_module(MODULE, each, *size) for each in loaded] for _ in range(LOADS)]
        model = load_run(run)
        report.tables.append(layer_table(model.network))
        choice = choose_arithmetic(model.networks)
        log.info("arithmetic %s: %s", *choice)
        samples = collect(_speed(model, [load(version) for version in versions], repetitions), repetitions)
    _add_speed(report, name, choice.arithmetic, samples)
    for arithmetic, gigabytes, most in zip(ARITHMETICS, sizes, (0.6, 0.6, 0.3), strict=True):
        report.add(f"{arithmetic}_saved_model_gb", [gigabytes], "the SavedModel's files", ("<=", most))
    _add_loads(report, rounds)
    ratios, remark = extraction_of_network(repetitions)
    report.add("extraction_of_network", ratios, remark, (">=", 0.9))
    return report


def _add_speed(report: Report, name: str, chosen: str, samples: dict[str, list[float]]) -> None:
    """Add the ratios of `_speed`, and of the arithmetic that is chosen for this machine."""
    scales = f"{len(get_preset(name).scales)} scales, `{name}`, one image"
    flips = "one flip" if chosen == "direct" else "with flips"
    remark = f"{scales}, {flips}, by the SavedModel, {chosen}: multiply-adds a second over a product's"
    goal = (">=", 1.8 if name == "accurate" else 1.7)
    report.add("of_matmul_rate", samples[f"{chosen}_of_matmul_rate"], remark, goal)
    for arithmetic in FASTER:
        report.add(f"{arithmetic}_of_matmul_rate", samples[f"{arithmetic}_of_matmul_rate"], f"the same, {arithmetic}")
    remark = f"{scales}, one flip, direct arithmetic; the lesser"
    report.add("direct_of_matmul_rate", samples["direct_of_matmul_rate"], remark, (">=", 0.85))
    report.add("python_of_matmul_rate", samples["python_of_matmul_rate"], "by the Python call")
    report.add("exported_of_matmul_rate", samples["exported_of_matmul_rate"], "by the SavedModel")
    for arithmetic, most in zip(FASTER, (1e-4, 2e-2), strict=True):
        errors = samples[f"{arithmetic}_error"]
        report.add(f"{arithmetic}_error", errors, "class scores, of their maximum", ("<=", most))
    report.add("over_crops", samples["over_crops"], f"the same windows as crops in batches of {CROPS}", (">=", 25.0))
    report.add("area_growth", samples["area_growth"], "time per megapixel at 4 times the area", ("<=", 1.1))
    report.add("area_growth_of_work", samples["area_growth_of_work"], "multiply-adds per megapixel, the same")


def _add_loads(report: Report, rounds: Sequence[Sequence[Sequence[float]]]) -> None:
    """Add peak memory and load times. A round has [GB, s] of the run, and of a classifier and a detector each way."""
    of_run, *others = zip(*rounds, strict=True)
    of_classes, of_boxes = others[: len(ARITHMETICS)], others[len(ARITHMETICS) :]
    peaks = [peak for each in (of_run, of_classes[0]) for peak, _ in each]
    report.add("peak_memory_gb", peaks, "of a process: run, SavedModel, direct; with flips", ("<=", 3.0))
    for prefix, what, (plain, *faster) in (
        ("", "SavedModel", of_classes),
        ("boxes_", "SavedModel that detects", of_boxes),
    ):
        for name, taken, most in zip(FASTER, faster, (4.5, 3.4), strict=True):
            loads = [one / other for (_, one), (_, other) in zip(taken, plain, strict=True)]
            report.add(f"{prefix}{name}_peak_memory_gb", [peak for peak, _ in taken], f"{what}, {name}", ("<=", most))
            report.add(f"{prefix}{name}_load_of_direct", loads, f"{what}: load time, {name} over direct", ("<=", 2.0))


def _write_classifiers(name: str, folder: Path) -> tuple[Path, ...]:
    """Write a run and SavedModels of it: direct without flips, and with flips by each arithmetic."""
    from serving.export.exporter import export  # here, so that it adds no memory to the processes that are measured

    model = random_classifier(name)
    model.save_weights(folder / "run" / "weights")
    (folder / "run" / CONFIG).write_text(json.dumps({"model": model.config(), "training": {}}))
    log.info("exporting `%s`", name)
    flipped = model.with_options(flips=True)
    versions = (model, *(flipped.with_options(arithmetic=each) for each in ARITHMETICS))
    return folder / "run", *(export(version, folder / name) for version in versions)


def _write_detectors(name: str, folder: Path) -> tuple[Path, ...]:
    """Write SavedModels of a detector with flips, one by each arithmetic."""
    from serving.export.exporter import export

    model = random_detector(name).with_options(flips=True)
    return tuple(export(model.with_options(arithmetic=each), folder / "boxes") for each in ARITHMETICS)


def _speed(model: Model, versions: Sequence, repetitions: int) -> Iterator[dict[str, float]]:
    """Yield the ratios of each repetition. `versions` are the SavedModels of `_write_classifiers`."""
    exported, flipped, *faster = versions
    preset, limit = model.network.preset, MatrixProduct()
    height, width = preset.scales[-1]
    image = noise_images(1, height, width)
    work, windows = scan_work_of_image(preset, height, width)
    crops = _crops(model.network, image[0])
    large = noise_images(1, NATIVE[0] * 2, NATIVE[1] * 2)
    small = np.ascontiguousarray(large[:, : NATIVE[0], : NATIVE[1]])
    scans: list[Callable[[], object]] = [partial(model.classify, image), partial(exported.classify, image)]
    flipped_scans = [partial(each.classify, image) for each in faster]
    others: list[Callable[[], object]] = [crops, *(partial(model.extract_features, each) for each in (small, large))]
    for call in (*scans, *others):
        call()
    plain, *logits = (each.classify(image)["logits"] for each in (flipped, *faster))
    errors = [float(np.abs(plain - other).max() / np.abs(plain).max()) for other in logits]
    growth = _native_work(preset, *large.shape[1:3]) / _native_work(preset, *small.shape[1:3]) / 4
    for _ in range(repetitions):
        (python_rate, python), (exported_rate, saved) = (limit.compare(work, call) for call in scans)
        fast_rates = [limit.compare(2 * work, call)[0] for call in flipped_scans]
        cropped, native, native_large = map(time_call, others)
        yield {
            **{f"{name}_of_matmul_rate": rate for name, rate in zip(FASTER, fast_rates, strict=True)},
            **{f"{name}_error": error for name, error in zip(FASTER, errors, strict=True)},
            "python_of_matmul_rate": python_rate,
            "exported_of_matmul_rate": exported_rate,
            "direct_of_matmul_rate": min(python_rate, exported_rate),
            "over_crops": cropped * windows / CROPS / ((python + saved) / 2),
            "area_growth": native_large / native / 4,
            "area_growth_of_work": growth,
        }


def scan_work_of_image(preset: Preset, height: int, width: int) -> tuple[int, int]:
    """Count the multiply-adds and the windows of an image's scan: all scales, fine stride, one flip."""
    canvases = [fit_scale(preset, scale, tf.constant([height, width]))[1].numpy().tolist() for scale in preset.scales]
    windows = sum(preset.window_count(rows) * preset.window_count(columns) for rows, columns in canvases)
    work = sum(preset.backbone.multiply_adds(rows, columns) for rows, columns in canvases)
    return work + windows * sum(layer.multiply_adds for layer in preset.head("classifier", CLASSES)), windows


def _native_work(preset: Preset, height: int, width: int) -> int:
    """Count the multiply-adds of the default features at native size and coarse stride."""
    windows = preset.window_count(height, fine=False) * preset.window_count(width, fine=False)
    hidden = sum(layer.multiply_adds for layer in preset.head("classifier", CLASSES)[:-1])
    return preset.backbone.multiply_adds(height, width) + windows * hidden


def _crops(network: Network, image: np.ndarray) -> Callable[[], object]:
    """Return a call that cuts a batch of windows out of the image's largest scale and runs the network on each."""
    preset = network.preset
    canvas, _ = draw_scale(preset, preset.scales[-1], tf.constant(image))
    rows, columns = (range(0, side - preset.window + 1, preset.fine_stride) for side in canvas.shape[:2])
    corners = list(islice(cycle(product(rows, columns)), CROPS))

    def run() -> tf.Tensor:
        pixels = tf.stack([canvas[y : y + preset.window, x : x + preset.window] for y, x in corners])
        windows = find_windows(preset, feature_maps(network, [pixels]), fine=False)
        return tf.nn.softmax(run_heads([network.classifier], windows)[0])

    return _on_host(run)


def _load_and_scan(folder: Path, height: int, width: int) -> tuple[float, float]:
    """Load a model and scan all scales of an image twice, with flips, in this process."""
    started = time.perf_counter()
    model = load(folder)
    loading = time.perf_counter() - started
    if isinstance(model, Model):
        model = model.with_options(flips=True)
    image = noise_images(1, height, width)
    for _ in range(2):
        (model.detect if "detection" in model.tasks else model.classify)(image)
    return peak_memory_gb(), loading


def extraction_of_network(repetitions: int) -> tuple[list[float], str]:
    """Compare the image rate of `overfeat features` on files with that of the network on decoded images.

    Returns:
        One ratio per repetition, and a remark that says what was compared.
    """
    from overfeat_tf.cli.features import extract_files  # here, so that h5py is not in the processes that are measured

    model, scale = random_classifier("fast"), EXTRACTION_SCALE
    with TemporaryDirectory(prefix="overfeat-benchmark-") as name:
        files = write_photographs(Path(name) / "photographs")
        out = Path(name) / "features.npz"
        pixels = [tf.io.decode_jpeg(file.read_bytes(), 3).numpy() for file in files]
        model.extract_features(pixels[:8], scale=scale)
        sides = (
            partial(time_call, lambda: extract_files(model, files, out, None, False, [scale])),
            partial(time_call, lambda: model.extract_features(pixels, scale=scale)),
        )
        (ratios,) = compare_rates("extraction in images/s, with and without files", FILES, sides, repetitions)
    return ratios, f"{FILES} JPEGs of {SIZE[1]}x{SIZE[0]}, `fast`, scale {scale}: files to .npz over decoded images"


def layer_table(network: Network) -> str:
    """Time each layer that Winograd's tiles compute, directly and by tiles, on random maps; a table in Markdown.

    The column `expected` has the rate that the rule of `overfeat_tf.compute.execution` expects of the tiles.
    """
    rows = list(_layer_rows(network, MatrixProduct()))
    total = sum(work for *_, work in rows)
    cells = [
        (name, f"{side} x {side}", windows, *(f"{rate:.2f}" for rate in rates), f"{100 * work / total:.0f}")
        for name, side, windows, *rates, work in rows
    ]
    rates = ("direct, of the product's rate", "winograd", "expected")
    return markdown_table(("layer", "tiles", "windows", *rates, "multiply-adds, %"), cells)


def _layer_rows(network: Network, limit: MatrixProduct) -> Iterator[tuple]:
    execution, preset = Execution(network, "winograd"), network.preset
    sizes = [preset.backbone.map_sizes(*scale) for scale in preset.scales]
    for number, row in enumerate(preset.backbone.layers):
        layer = network.features.get_layer(row.name)
        if layer.name not in execution.sides:
            continue
        reach = row.kernel - 1
        maps = [_noise(size[number][0] + reach, size[number][1] + reach, layer.kernel.shape[2]) for size in sizes]
        windows = windows_of(maps, row.kernel, 1)
        plain = _as_product(layer, windows) if is_wide(layer) else _as_convolutions(layer, maps)
        yield _layer_row(layer, execution, windows, plain, limit)
    last = [_noise(*size[-1], preset.backbone.channels * (1 + network.context)) for size in sizes]
    windows = find_windows(preset, last)
    head = network.classifier
    first = next(layer for layer in head.layers if isinstance(layer, keras.layers.Conv2D))
    if first.name in execution.sides:
        yield _layer_row(first, execution, windows, _as_product(first, windows), limit)


def _layer_row(layer, execution: Execution, windows: Windows, plain: Callable, limit: MatrixProduct) -> tuple:
    side, (*_, channels, outputs) = execution.sides[layer.name], layer.kernel.shape

    def by_tiles() -> tf.Tensor:
        tiles = lay_tiles(windows.maps, windows.taps, windows.dilation, side)
        return tf.reduce_max(run_tiles([tf.convert_to_tensor(layer.kernel.value)], windows.cells, tiles, side)[0])

    count, shape = int(tf.reduce_sum(windows.counts)), Shape(windows.taps, windows.dilation, channels, outputs)
    work = count * windows.taps**2 * channels * outputs
    rates = []
    for compute in (plain, by_tiles):
        call = _on_host(compute)
        call()
        rates.append(median(limit.compare(work, call)[0] for _ in range(LAYER_REPETITIONS)))
    expected = work / winograd_cost(shape, side, int(windows.tiles(side)))
    return layer.name, side, count, *rates, expected, work


def _on_host(compute: Callable[[], tf.Tensor]) -> Callable[[], object]:
    traced = tf.function(compute, autograph=False)
    return lambda: traced().numpy()


def _as_product(layer: keras.layers.Conv2D, windows: Windows) -> Callable[[], tf.Tensor]:
    head = keras.Model(inputs := keras.Input((None, None, windows.cells.shape[1])), layer(inputs))
    return lambda: tf.reduce_max(run_heads([head], windows)[0])


def _as_convolutions(layer: keras.layers.Conv2D, maps: list[tf.Tensor]) -> Callable[[], tf.Tensor]:
    return lambda: tf.add_n([tf.reduce_max(layer(each)) for each in maps])


def _noise(height: int, width: int, channels: int) -> tf.Tensor:
    return tf.nn.relu(tf.random.stateless_normal([1, height, width, channels], [height, width]))


if __name__ == "__main__":
    print(*_load_and_scan(Path(sys.argv[1]), *map(int, sys.argv[2:])))
