"""How near the scan comes to the machine's matrix-product rate, and what it costs (`overfeat benchmark scan`).

Weights are random: time and memory do not depend on them, but for numbers next to nothing, which take their own time.
"""

import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice, product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tensorflow as tf

from overfeat_tf.cli.benchmarks.layers import layer_table
from overfeat_tf.cli.benchmarks.machine import MatrixProduct, describe, seconds
from overfeat_tf.cli.benchmarks.report import Report
from overfeat_tf.compute.dense import feature_maps, find_windows, run_heads
from overfeat_tf.compute.execution import ARITHMETICS
from overfeat_tf.models.loading import load, load_run
from overfeat_tf.models.model import CONFIG, Model
from overfeat_tf.network.convnet import Network, build
from overfeat_tf.network.geometry import window_count
from overfeat_tf.network.presets import Preset, get_preset
from overfeat_tf.scan.pyramid import draw_scale, fit_scale

CLASSES = 1000
OBJECTS = 20  # classes of the detector
LOADS = 3  # of each version in a process of its own
CROPS = 128  # a batch of the crop-by-crop way: large enough for its own products to run well
NATIVE = (1500, 2000)  # pixels: large enough for windows to lie nearly everywhere; and twice that a side

log = logging.getLogger(__name__)


def measure(name: str, repetitions: int) -> Report:
    """Measure a preset's scan; every repetition takes all sides of all ratios in turn.

    Args:
        name: The preset.
        repetitions: How often.
    """
    from overfeat_tf.cli.benchmarks.extraction import extraction_of_network

    preset = get_preset(name)
    report = Report("scan", describe())
    with TemporaryDirectory(prefix="overfeat-benchmark-") as folder:
        run, *versions = _write(preset, Path(folder))
        boxes = _write_boxes(preset, Path(folder))
        log.info("time and memory of processes that load and scan, with flips")
        apart = (run, *versions[1:], *boxes)
        rounds = [[_load_apart(each, preset.scales[-1]) for each in apart] for _ in range(LOADS)]
        model = load_run(run)
        tables = [layer_table(model.network)]
        samples: dict[str, list[float]] = {}
        for number, ratios in enumerate(_speed(model, [load(version) for version in versions], repetitions), start=1):
            log.info(
                "repetition %d of %d: %s", number, repetitions, ", ".join(f"{k} {v:.3f}" for k, v in ratios.items())
            )
            for ratio, value in ratios.items():
                samples.setdefault(ratio, []).append(value)
    scales = f"{len(preset.scales)} scales, `{name}`, one image"
    what = f"{scales}, with flips, by the SavedModel, transformed: direct multiply-adds a second over a product's"
    report.add("of_matmul_rate", samples["of_matmul_rate"], what, (">=", 1.5 if name == "accurate" else 1.3))
    both = [
        min(pair) for pair in zip(samples["python_of_matmul_rate"], samples["exported_of_matmul_rate"], strict=True)
    ]
    report.add("direct_of_matmul_rate", both, f"{scales}, one flip, direct arithmetic; the lesser", (">=", 0.85))
    report.add("python_of_matmul_rate", samples["python_of_matmul_rate"], "by the Python call")
    report.add("exported_of_matmul_rate", samples["exported_of_matmul_rate"], "by the SavedModel")
    report.add("transformed_error", samples["transformed_error"], "class scores, of their maximum", ("<=", 1e-4))
    report.add("over_crops", samples["over_crops"], f"the same windows as crops in batches of {CROPS}", (">=", 25.0))
    report.add("area_growth", samples["area_growth"], "time per megapixel at 4 times the area", ("<=", 1.1))
    report.add("area_growth_of_work", samples["area_growth_of_work"], "multiply-adds per megapixel, the same")
    of_run, direct, transformed, *of_boxes = zip(*rounds, strict=True)
    peaks = [peak for each in (of_run, direct) for peak, _ in each]
    report.add("peak_memory_gb", peaks, "of a process: run, SavedModel, direct; with flips", ("<=", 3.0))
    for prefix, what, (plain, fewer) in (
        ("", "SavedModel", (direct, transformed)),
        ("boxes_", "that detects", of_boxes),
    ):
        peaks = [peak for peak, _ in fewer]
        loads = [one / other for (_, one), (_, other) in zip(fewer, plain, strict=True)]
        report.add(f"{prefix}transformed_peak_memory_gb", peaks, f"{what}, transformed", ("<=", 4.5))
        report.add(f"{prefix}load_of_direct", loads, f"{what}: loading it, transformed over direct", ("<=", 2.0))
    pairs, remark = extraction_of_network(repetitions)
    report.add("extraction_of_network", pairs, remark, (">=", 0.9))
    report.tables += tables
    return report


def _write(preset: Preset, folder: Path) -> tuple[Path, ...]:
    """Write a run with random weights, and its SavedModel: direct; that with flips; and with flips, transformed."""
    from serving.export.exporter import export

    labels = tuple(str(number) for number in range(CLASSES))
    # Activations of a trained network's size: of the paper's initial weights next to nothing comes out.
    model = Model(build(replace(preset, init_std=None), CLASSES), labels, tasks=("classification",))
    model.save_weights(folder / "run" / "weights")
    (folder / "run" / CONFIG).write_text(json.dumps({"model": model.config(), "training": {}}))
    log.info("exporting `%s`", preset.name)
    to, flipped = folder / preset.name, model.with_options(flips=True)
    versions = (model, flipped, flipped.with_options(arithmetic="transformed"))
    return folder / "run", *(export(version, to) for version in versions)


def _write_boxes(preset: Preset, folder: Path) -> tuple[Path, ...]:
    """Write the SavedModel of a detector with random weights and flips: direct, and transformed."""
    from serving.export.exporter import export

    labels = tuple(str(number) for number in range(OBJECTS))
    model = Model(build(replace(preset, init_std=None), OBJECTS, background=True), labels).with_options(flips=True)
    return tuple(export(model.with_options(arithmetic=each), folder / "boxes") for each in ARITHMETICS)


def _speed(model: Model, versions: Sequence, repetitions: int) -> Iterator[dict[str, float]]:
    """Yield the ratios of each repetition; what is compared is run one after the other. `versions` are `_write`'s."""
    exported, flipped, transformed = versions
    preset, limit = model.network.preset, MatrixProduct()
    height, width = preset.scales[-1]
    image = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    work, windows = _scan_work(preset, height, width)
    crops = _crops(model.network, image[0])
    large = np.random.default_rng(1).integers(0, 256, (1, NATIVE[0] * 2, NATIVE[1] * 2, 3), np.uint8)
    small = np.ascontiguousarray(large[:, : NATIVE[0], : NATIVE[1]])
    calls: list[Callable[[], object]] = [
        lambda: model.classify(image),
        lambda: exported.classify(image),
        crops,
        lambda: model.extract_features(small),
        lambda: model.extract_features(large),
        lambda: transformed.classify(image),
    ]
    for call in calls:
        call()
    plain, other = (each.classify(image)["logits"] for each in (flipped, transformed))
    error = float(np.abs(plain - other).max() / np.abs(plain).max())
    growth = _native_work(preset, *large.shape[1:3]) / _native_work(preset, *small.shape[1:3]) / 4
    for _ in range(repetitions):
        rates, times = [limit.rate()], []
        for call in calls:
            times.append(seconds(call))
            rates.append(limit.rate())
        python, saved, cropped, native, native_large, fewer = times
        yield {
            "of_matmul_rate": 2 * work / fewer / ((rates[-2] + rates[-1]) / 2),
            "transformed_error": error,
            "python_of_matmul_rate": work / python / ((rates[0] + rates[1]) / 2),
            "exported_of_matmul_rate": work / saved / ((rates[1] + rates[2]) / 2),
            "over_crops": cropped * windows / CROPS / ((python + saved) / 2),
            "area_growth": native_large / native / 4,
            "area_growth_of_work": growth,
        }


def _scan_work(preset: Preset, height: int, width: int) -> tuple[int, int]:
    """Count the multiply-adds and the windows of an image's scan: all scales, fine stride, one flip."""
    canvases = [fit_scale(preset, scale, tf.constant([height, width]))[1].numpy().tolist() for scale in preset.scales]
    windows = sum(window_count(preset, rows) * window_count(preset, columns) for rows, columns in canvases)
    work = sum(preset.backbone.multiply_adds(rows, columns) for rows, columns in canvases)
    return work + windows * sum(layer.multiply_adds for layer in preset.head("classifier", CLASSES)), windows


def _native_work(preset: Preset, height: int, width: int) -> int:
    """Count the multiply-adds of the default features at native size and coarse stride."""
    windows = window_count(preset, height, fine=False) * window_count(preset, width, fine=False)
    hidden = sum(layer.multiply_adds for layer in preset.head("classifier", CLASSES)[:-1])
    return preset.backbone.multiply_adds(height, width) + windows * hidden


def _crops(network: Network, image: np.ndarray) -> Callable[[], object]:
    """Cut a batch of windows out of the image's largest scale, and run the network on them by the same code."""
    preset = network.preset
    canvas, _ = draw_scale(preset, preset.scales[-1], tf.constant(image))
    rows, columns = (range(0, side - preset.window + 1, preset.fine_stride) for side in canvas.shape[:2])
    corners = list(islice(cycle(product(rows, columns)), CROPS))

    def run() -> tf.Tensor:
        pixels = tf.stack([canvas[y : y + preset.window, x : x + preset.window] for y, x in corners])
        windows = find_windows(preset, feature_maps(network, [pixels]), fine=False)
        return tf.nn.softmax(run_heads([network.classifier], windows)[0])

    traced = tf.function(run, autograph=False)
    return lambda: traced().numpy()


def _load_apart(folder: Path, size: tuple[int, int]) -> tuple[float, float]:
    """Load, then scan all scales of an image with flips, twice, in a fresh process: its peak memory in GB, and the
    seconds that loading took."""
    command = [sys.executable, "-m", "overfeat_tf.cli.benchmarks.scan", str(folder), *map(str, size)]
    peak, loading = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(peak), float(loading)


def _load_and_scan(folder: Path, height: int, width: int) -> tuple[float, float]:
    begun = time.perf_counter()
    model = load(folder)
    loading = time.perf_counter() - begun
    if isinstance(model, Model):
        model = model.with_options(flips=True)
    image = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    for _ in range(2):
        (model.detect if "detection" in model.tasks else model.classify)(image)
    # Not getrusage, whose peak begins with that of the process that this one was forked from.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak[1]) * 1024 / 1e9 if peak else float("nan"), loading


if __name__ == "__main__":
    print(*_load_and_scan(Path(sys.argv[1]), *map(int, sys.argv[2:])))
