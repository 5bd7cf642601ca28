"""`overfeat benchmark merge`: the cost of merging boxes, its growth, and its mAP against non-maximum suppression."""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from overfeat_tf.cli.benchmarks.harness import (
    Report,
    collect,
    divide,
    markdown_table,
    peak_memory_gb,
    run_module,
    time_in_turn,
)
from overfeat_tf.cli.benchmarks.inputs import photographs, rescaled_preset
from overfeat_tf.images.decode import decode_image
from overfeat_tf.merge.accumulation import merge
from overfeat_tf.models.batches import ONE_IMAGE
from overfeat_tf.models.inference import Candidates, detect, merge_candidates
from overfeat_tf.models.loading import load_run
from overfeat_tf.models.model import Model
from overfeat_tf.network.convnet import Network, build
from overfeat_tf.network.presets import Preset
from overfeat_tf.options import InferenceOptions
from overfeat_tf.scan.dense_scan import scan
from training.evaluation.average_precision import CocoDetection
from training.sources import open_source
from training.sources.record import Record, Source, check_split

CLASSES = 5
BOX_DEVIATION = 0.1  # of a window's side: how far the boxes of random weights lie from the middle of their windows
SIZES = (500, 8000)  # numbers of boxes: growth is measured from the first to the second
OBJECTS = 10  # that these boxes lie around
IOUS = (0.2, 0.3, 0.4, 0.5, 0.6)  # of suppression; merging uses the run's own threshold
THRESHOLD = InferenceOptions.merge_threshold
MODULE = "overfeat_tf.cli.benchmarks.merging"

log = logging.getLogger(__name__)

# Takes an image's candidates and its size; returns boxes [n, 4] (normalised), scores [n] and classes [n].
Combine = Callable[[Candidates, tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]


class Scored(NamedTuple):
    """The mAP of one way to combine candidates, and the seconds that each image took."""

    map50: float
    map: float
    times: list[float]


def measure(name: str, repetitions: int, detectors: Sequence[tuple[str, str, str]] = (), limit: int = 200) -> Report:
    """Measure merging. Each repetition measures both sides of every ratio in turn.

    Args:
        name: The preset that is scanned.
        repetitions: Values of each ratio of times.
        detectors: (run, SOURCE, split) to compare merging with suppression on; without any, `digits` is trained.
        limit: Images of each split.
    """
    from training.evaluation.evaluate import require_fit  # here, so that it adds no memory to the process of `MODULE`

    report, image, preset = Report("merge"), photographs()[0], rescaled_preset(name)
    with TemporaryDirectory(prefix="overfeat-benchmark-") as folder:
        found = {}
        for run, data, split in detectors or [_train_digits(Path(folder))]:
            source, model = open_source(data), load_run(Path(run))
            check_split(source, split)
            require_fit(model.labels, model.answered_tasks, source, ("detection",))
            predictions = Predictions(model, source, split, limit)
            found[f"{data.split('/')[-1]}, {split}"] = compare(predictions, len(source.class_names))
    samples = collect(_speed(preset, image, repetitions), repetitions)
    windows = f"{CLASSES} classes, all windows of all scales of `{name}`"
    report.add("of_scan_time", samples["shared"], f"{windows}, one regressor (SCR)", ("<=", 0.03))
    report.add("of_scan_time_per_class", samples["own"], f"{windows}, a box for each class (PCR)", ("<=", 0.03))
    growth = f"{SIZES[0]} to {SIZES[1]} boxes of one class around {OBJECTS} objects"
    report.add("exponent", samples["exponent"], growth, ("<=", 2.1))
    memory = f"of a process that merges {SIZES[1]} boxes"
    report.add("peak_memory_gb", run_module(MODULE, SIZES[1]), memory, ("<=", 2.0))
    for figure in ("map50", "map"):
        values = [_over_suppression(scores, figure) for scores in found.values()]
        report.add(f"{figure}_over_nms", values, f"{', '.join(found)}: over the best suppression", (">=", 1.0))
    report.tables += [_table(data, scores) for data, scores in found.items()]
    return report


def _speed(preset: Preset, image: np.ndarray, repetitions: int) -> Iterator[dict[str, float]]:
    """Yield the ratios of each repetition."""
    network = build(preset, CLASSES, background=True, per_class=True)
    pixels = tf.cast(tf.image.resize(image, preset.scales[-1]), tf.uint8)
    network.regressor(tf.zeros([1, *[preset.head_kernel] * 2, preset.backbone.channels]))
    _center_boxes(network, pixels)
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
    log.info("%d windows merge into %d boxes", count, len(merge(shared, votes, labels, THRESHOLD).scores))
    for times in time_in_turn(calls, repetitions):
        log.info("scan %.2f s; merging %s s", times[0], ", ".join(f"{value:.3f}" for value in times[1:]))
        yield {
            "shared": times[1] / times[0],
            "own": times[2] / times[0],
            "exponent": math.log(times[4] / times[3]) / math.log(SIZES[1] / SIZES[0]),
        }


def _center_boxes(network: Network, pixels: tf.Tensor) -> None:
    """Scale the regressor's last layer so that its boxes lie around the middle of their windows."""
    layer = network.regressor.layers[-1]
    hidden = tf.function(lambda: scan(network, pixels, InferenceOptions(scales=(3,)))[0], autograph=False)
    layer.bias.assign(tf.zeros_like(layer.bias))
    seen = hidden()
    sides = tf.tile(seen.windows[..., 2:] - seen.windows[..., :2], [1, 1, 2])
    edges = (seen.boxes - seen.windows[:, :, None]) / sides[:, :, None]
    layer.kernel.assign(layer.kernel * BOX_DEVIATION / tf.math.reduce_std(edges))
    layer.bias.assign(tf.tile([0.15, 0.15, 0.85, 0.85], [CLASSES]))


def _scene(count: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return boxes like a trained detector's: each around one of a few objects, off by a twentieth of its side."""
    rng = np.random.default_rng(0)
    centres, sides = rng.uniform(0, 500, (OBJECTS, 2)), rng.uniform(60, 200, (OBJECTS, 2))
    which = rng.integers(0, OBJECTS, count)
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)[which]
    boxes += rng.normal(0, 0.05, (count, 4)) * np.tile(sides[which], 2)
    scores = rng.uniform(0.2, 1, count)
    return tf.constant(boxes, tf.float32), tf.constant(scores, tf.float32), tf.ones([count], tf.int32)


def _train_digits(folder: Path) -> tuple[str, str, str]:
    from training.fit.train import train  # here, as above
    from training.recipes import get_recipe

    log.info("training the recipe `digits`, some minutes")
    train(get_recipe("digits-quick"), open_source("digits"), folder / "digits")
    return str(folder / "digits"), "digits", "test"


class Predictions:
    """A detector's candidates for the images of a split, before merging or suppression."""

    def __init__(self, model: Model, source: Source, split: str, limit: int | None = None):
        self.options, self._classes = model.options, source.class_names
        self._images: list[tuple[Record, Candidates, tf.Tensor]] = []
        network = model.network

        @tf.function(input_signature=[ONE_IMAGE], autograph=False)
        def candidates(image: tf.Tensor) -> Candidates:
            scans = scan(network, image, model.options)
            found = detect(network, scans, tf.shape(image)[:2], model.options).candidates
            assert found is not None  # detection always has candidates
            return found

        for record in islice(source.records(split), limit):
            pixels, status = decode_image(tf.constant(record.image_bytes))
            if status == "" and record.boxed.all():
                self._images.append((record, candidates(pixels), tf.shape(pixels)[:2]))
        log.info("%s %s: %d images, %d candidates", source.name, split, len(self._images), self.count)

    @property
    def count(self) -> int:
        """Number of candidates of all images."""
        return sum(len(candidates.scores) for _, candidates, _ in self._images)

    def score(self, combine: Combine) -> Scored:
        """Combine each image's candidates and score the detections."""
        traced = tf.function(combine, autograph=False, reduce_retracing=True)
        metric, times = CocoDetection(self._classes), []
        for record, candidates, size in self._images:
            traced(candidates, size)  # may trace for this number of candidates
            start = time.perf_counter()
            boxes, scores, classes = (values.numpy() for values in traced(candidates, size))
            times.append(time.perf_counter() - start)
            answer = {
                "image_size": size.numpy(),
                "num_detections": np.array(len(scores)),
                "detection_boxes": boxes,
                "detection_scores": scores,
                "detection_classes": classes,
            }
            metric.process(record, answer)
        figures = dict(metric.evaluate())
        return Scored(figures["map50"], figures["map"], times)


def by_merging(options: InferenceOptions) -> Combine:
    """Return the function that merges candidates as `detect` does."""

    def combine(candidates: Candidates, size: tf.Tensor):
        merged = merge_candidates(candidates, size, options)
        return tuple(values[: options.max_detections] for values in (merged.boxes, merged.scores, merged.classes))

    return combine


def by_suppression(iou: float, classes: int, max_detections: int) -> Combine:
    """Return the function that suppresses candidates class by class (`tf.image.combined_non_max_suppression`)."""

    def combine(candidates: Candidates, size: tf.Tensor):
        boxes = tf.clip_by_value(candidates.boxes, 0.0, 1.0)
        scores = candidates.scores[:, None] * tf.one_hot(candidates.classes - 1, classes)
        kept = tf.image.combined_non_max_suppression(
            boxes[None, :, None], scores[None], max_detections, max_detections, iou, score_threshold=1e-6
        )
        count = kept.valid_detections[0]
        return kept.nmsed_boxes[0, :count], kept.nmsed_scores[0, :count], kept.nmsed_classes[0, :count] + 1.0

    return combine


def compare(predictions: Predictions, classes: int, ious: Sequence[float] = IOUS) -> dict[str, Scored]:
    """Score merging with the run's options, and suppression at each IoU."""
    options = predictions.options
    combines = {"merging": by_merging(options)}
    combines |= {f"suppression, IoU {iou}": by_suppression(iou, classes, options.max_detections) for iou in ious}
    return {name: predictions.score(combine) for name, combine in combines.items()}


def _over_suppression(scores: dict[str, Scored], figure: str) -> float:
    merging, *suppressions = (getattr(scored, figure) for scored in scores.values())
    return divide(merging, max(suppressions))


def _table(data: str, scores: dict[str, Scored]) -> str:
    rows = [(n, f"{s.map50:.3f}", f"{s.map:.3f}", f"{median(s.times) * 1e3:.1f}") for n, s in scores.items()]
    return markdown_table((data, "mAP 0.5", "mAP 0.5:0.95", "ms an image"), rows)


if __name__ == "__main__":
    merge(*_scene(int(sys.argv[1])), THRESHOLD)
    print(peak_memory_gb())
