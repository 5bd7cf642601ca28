"""What merging costs beside the scan, how its cost grows, and what it is worth (`overfeat benchmark merge`)."""

import logging
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import tensorflow as tf

from overfeat_tf.cli.benchmarks.machine import describe, seconds
from overfeat_tf.cli.benchmarks.report import Report
from overfeat_tf.cli.benchmarks.suppression import Predictions, Scored, compare
from overfeat_tf.merge.accumulation import merge
from overfeat_tf.models.loading import load_run
from overfeat_tf.network.convnet import Network, build
from overfeat_tf.network.presets import get_preset
from overfeat_tf.options import InferenceOptions
from overfeat_tf.scan.dense_scan import scan
from training.sources import open_source

CLASSES = 5
SPREAD = 0.1  # of a window's side: how far the boxes of random weights lie from the middle of their windows
SIZES = (500, 8000)  # boxes between which growth is measured
OBJECTS = 10  # around which these lie
THRESHOLD = InferenceOptions.merge_threshold

log = logging.getLogger(__name__)


def measure(name: str, repetitions: int, detectors: Sequence[tuple[str, str, str]] = (), limit: int = 200) -> Report:
    """Measure merging; every repetition takes all sides of all ratios in turn.

    Args:
        name: The preset that is scanned.
        repetitions: How often.
        detectors: (run, SOURCE, split) to compare merging with suppression on; without any, `digits` is trained.
        limit: Images of each split.
    """
    report = Report("merge", describe())
    samples: dict[str, list[float]] = {}
    for number, ratios in enumerate(_speed(name, repetitions), start=1):
        log.info("repetition %d of %d: %s", number, repetitions, ", ".join(f"{k} {v:.4f}" for k, v in ratios.items()))
        for ratio, value in ratios.items():
            samples.setdefault(ratio, []).append(value)
    windows = f"{CLASSES} classes, all windows of all scales of `{name}`"
    report.add("of_scan_time", samples["shared"], f"{windows}, one regressor (SCR)", ("<=", 0.03))
    report.add("of_scan_time_per_class", samples["own"], f"{windows}, a box for each class (PCR)", ("<=", 0.03))
    growth = f"{SIZES[0]} to {SIZES[1]} boxes of one class around {OBJECTS} objects"
    report.add("exponent", samples["exponent"], growth, ("<=", 2.1))
    report.add("peak_memory_gb", [_peak_memory(SIZES[1])], f"of a process that merges {SIZES[1]} boxes", ("<=", 2.0))
    with TemporaryDirectory(prefix="overfeat-benchmark-") as folder:
        found = {}
        for run, data, split in detectors or [_train_digits(Path(folder))]:
            source = open_source(data)
            predictions = Predictions(load_run(Path(run)), source, split, limit)
            found[f"{data.split('/')[-1]}, {split}"] = compare(predictions, len(source.class_names))
    for figure in ("map50", "map"):
        values = [getattr(ways["merging"], figure) / max(_suppressed(ways, figure)) for ways in found.values()]
        report.add(f"{figure}_over_nms", values, f"{', '.join(found)}: over the best suppression", (">=", 1.0))
    report.tables += [_table(data, ways) for data, ways in found.items()]
    return report


def _speed(name: str, repetitions: int) -> Iterator[dict[str, float]]:
    """Yield the ratios of each repetition; what is compared is run one after the other."""
    preset = replace(get_preset(name), init_std=None)  # the paper's own leaves next to nothing of an image
    network = build(preset, CLASSES, background=True, per_class=True)
    pixels = _photograph(*preset.scales[-1])
    network.regressor(tf.zeros([1, *[preset.head_kernel] * 2, preset.backbone.channels]))
    _spread_boxes(network, pixels)
    options = InferenceOptions()

    @tf.function(autograph=False)
    def scanned() -> tuple[tf.Tensor, tf.Tensor]:
        scans = scan(network, pixels, options)
        boxes = tf.concat([tf.reshape(each.boxes, [-1, CLASSES, 4]) for each in scans], axis=0)
        logits = tf.concat([tf.reshape(each.logits, [-1, CLASSES + 1]) for each in scans], axis=0)
        return boxes * tf.cast(tf.tile(tf.shape(pixels)[:2], [2]), tf.float32), tf.nn.softmax(logits)[:, 1:]

    boxes, scores = scanned()
    count = boxes.shape[0]
    labels = tf.repeat(tf.range(1, CLASSES + 1), count)
    votes = tf.reshape(tf.transpose(scores), [-1])
    own = tf.reshape(tf.transpose(boxes, [1, 0, 2]), [-1, 4])
    shared = tf.tile(boxes[:, 0], [CLASSES, 1])
    few, many = (_scene(size) for size in SIZES)
    calls: list[Callable[[], object]] = [
        lambda: [values.numpy() for values in scanned()],
        lambda: merge(shared, votes, labels, THRESHOLD).scores.numpy(),
        lambda: merge(own, votes, labels, THRESHOLD).scores.numpy(),
        lambda: merge(*few, THRESHOLD).scores.numpy(),
        lambda: merge(*many, THRESHOLD).scores.numpy(),
    ]
    for call in calls:
        call()
    log.info("%d windows merge into %d boxes", count, len(merge(shared, votes, labels, THRESHOLD).scores))
    for _ in range(repetitions):
        times = [seconds(call) for call in calls]
        log.info("scan %.2f s; merging %s s", times[0], ", ".join(f"{value:.3f}" for value in times[1:]))
        yield {
            "shared": times[1] / times[0],
            "own": times[2] / times[0],
            "exponent": math.log(times[4] / times[3]) / math.log(SIZES[1] / SIZES[0]),
        }


def _photograph(height: int, width: int) -> tf.Tensor:
    from sklearn.datasets import load_sample_images

    return tf.cast(tf.image.resize(load_sample_images().images[0], [height, width]), tf.uint8)


def _spread_boxes(network: Network, pixels: tf.Tensor) -> None:
    """Set the regressor's last layer so that boxes lie around the middle of their windows as what is seen has it."""
    layer = network.regressor.layers[-1]
    hidden = tf.function(lambda: scan(network, pixels, InferenceOptions(scales=(3,)))[0], autograph=False)
    layer.bias.assign(tf.zeros_like(layer.bias))
    seen = hidden()
    edges = (seen.boxes - seen.windows[:, :, None]) / tf.tile(seen.windows[..., 2:] - seen.windows[..., :2], [1, 1, 2])[
        :, :, None
    ]
    layer.kernel.assign(layer.kernel * SPREAD / tf.math.reduce_std(edges))
    layer.bias.assign(tf.tile([0.15, 0.15, 0.85, 0.85], [CLASSES]))


def _scene(count: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Make boxes as a trained detector gives them: each around one of a few objects, off by a twentieth of its side."""
    rng = np.random.default_rng(0)
    centres, sides = rng.uniform(0, 500, (OBJECTS, 2)), rng.uniform(60, 200, (OBJECTS, 2))
    which = rng.integers(0, OBJECTS, count)
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)[which]
    boxes += rng.normal(0, 0.05, (count, 4)) * np.tile(sides[which], 2)
    scores = rng.uniform(0.2, 1, count)
    return tf.constant(boxes, tf.float32), tf.constant(scores, tf.float32), tf.ones([count], tf.int32)


def _peak_memory(count: int) -> float:
    """Measure a fresh process's peak resident memory in GB."""
    command = [sys.executable, "-m", "overfeat_tf.cli.benchmarks.merging", str(count)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _train_digits(folder: Path) -> tuple[str, str, str]:
    from training.fit.train import train
    from training.recipes import get_recipe

    log.info("training the recipe `digits`, some minutes")
    train(get_recipe("digits-quick"), open_source("digits"), folder / "digits")
    return str(folder / "digits"), "digits", "test"


def _suppressed(ways: dict[str, Scored], figure: str) -> list[float]:
    return [getattr(scored, figure) for name, scored in ways.items() if name != "merging"]


def _table(data: str, ways: dict[str, Scored]) -> str:
    lines = [f"| {data} | mAP 0.5 | mAP 0.5:0.95 | ms an image |", "| --- | --- | --- | --- |"]
    lines += [f"| {n} | {s.map50:.3f} | {s.map:.3f} | {median(s.times) * 1e3:.1f} |" for n, s in ways.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    merge(*_scene(int(sys.argv[1])), THRESHOLD)
    # Not getrusage, whose peak begins with that of the process that this one was forked from.
    print(int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024 / 1e9)  # type: ignore
