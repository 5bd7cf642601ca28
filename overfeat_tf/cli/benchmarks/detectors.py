"""`overfeat benchmark detectors`: the recipe `finetune` against KerasHub's RetinaNet on the same backbone.

Both train on the same split for the same time, one after the other, and are scored by the same code. Anchors, matching,
losses and decoding of RetinaNet (Lin et al. 2017) are KerasHub's. Its users bring the rest: views, here those of our
recipe, and a learning rate for its default optimizer.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from overfeat_tf.cli.benchmarks.harness import Report, computing_seconds, divide, markdown_table, time_in_turn
from overfeat_tf.cli.options import with_changes
from overfeat_tf.images.decode import decode_image
from overfeat_tf.models.batches import ONE_IMAGE
from overfeat_tf.models.model import TASKS
from overfeat_tf.models.predictor import Answers, Predictor
from overfeat_tf.models.tasks import DETECTION
from overfeat_tf.network.backbone import GREY
from overfeat_tf.network.pretrained import activation_at_stride, of_any_size, open_model
from training.evaluation.evaluate import evaluate
from training.fit.train import train
from training.recipes import Recipe, get_recipe, override
from training.sources import open_source
from training.sources.record import Source
from training.views.augmentation import ViewOptions, below, random_picture
from training.views.coverage import read_objects
from training.views.drawing import Example, Views, has_boxes
from training.views.pipeline import training_batches
from training.views.pyramid import draw_image, resample

if TYPE_CHECKING:
    import keras_hub

FINETUNE, RETINANET = "finetune", "RetinaNet"
FIGURES = ("map50", "map", "map75")
PILOTS = (0.02, 0.06)  # shares of the recipe's steps that are trained to learn what all of them take
LEAST_GROWTH = 0.05  # of the second one's time: what its more steps take at least
SIZE, CALLS = (375, 500), 10  # height and width of the image that is timed, and how often

# RetinaNet fits images into a square of this side. It is a multiple of 128, so that anchors lie where their cells look.
SIDE = 384
FINEST, MIDDLE, COARSEST = 3, 4, 7  # P3 to P7; P4 to P7 where no object is too small for it
SMALLEST_AT_MIDDLE = 45  # pixels: a square object has an IoU of 0.5 with the smallest anchors of P4, of 64 pixels
BATCH = 4  # more steps in a few minutes than with larger ones
LEARNING_RATE, WARM_UP, CLIP = 3e-4, 50, 10.0  # of Adam, KerasHub's default
PRIOR, DEVIATION = 0.01, 0.01  # of the last layers: the probability of an object, and their kernels (4.1 of the paper)
LEAST_SCORE, OVERLAP, MOST = 0.01, 0.5, 100  # of the detections; mAP counts faint ones too
SHRINK = 1.3  # greatest factor by which a view is smaller than the square
VIEWS = ViewOptions(per_image=1, stretch=0.3, colour=0.4)  # as `finetune`

log = logging.getLogger(__name__)


class Trained(NamedTuple):
    """A detector, the seconds of its training, and its figures on the validation split."""

    model: Predictor
    seconds: float
    figures: dict[str, float]


def measure(backbone: str, data: Sequence[str], minutes: float | None, repetitions: int) -> Report:
    """Compare the two detectors on each set.

    Args:
        backbone: A model with pretrained weights, as `pretrained.open_model` takes it.
        data: SOURCES with boxes.
        minutes: Of `computing_seconds`, what each training takes: the recipe about, RetinaNet as long as the recipe
            did. None trains the recipe as it is.
        repetitions: Trainings of each detector on each set, each with a seed of its own.

    Raises:
        ImportError: KerasHub is not installed.
        ValueError: a backbone without maps of strides 8, 16 and 32.
    """
    if find_spec("keras_hub") is None:
        raise ImportError("expected KerasHub to compare with; it is not installed: pip install keras-hub")
    open_maps(backbone)  # raises now, not after the first training, where a map is missing
    sources = [open_source(each) for each in data]
    report = Report("detectors")
    ratios: dict[str, list[float]] = {name: [] for name in (*FIGURES, "seconds")}
    for source in sources:
        rows: dict[str, list[list[float]]] = {}
        for seed in range(repetitions):
            recipe = override(get_recipe(FINETUNE), [f"preset={backbone}", f"seed={seed}"])
            both = train_both(backbone, recipe, source, minutes)
            seconds = time_images(source, recipe.val_split, [each.model for each in both.values()])
            for (name, trained), each in zip(both.items(), seconds, strict=True):
                values = [trained.seconds / 60, *(trained.figures[figure] for figure in FIGURES), each]
                rows.setdefault(name, []).append(values)
            ours, theirs = (each[-1] for each in rows.values())
            for name, one, other in zip(ratios, ours[1:], theirs[1:], strict=True):
                ratios[name].append(divide(one, other))
        report.tables.append(_table(source.name, rows))
    what = f"`{FINETUNE}` over KerasHub's RetinaNet, validation split of {', '.join(each.name for each in sources)}"
    for figure in FIGURES:
        report.add(f"{figure}_over_retinanet", ratios[figure], what, (">=", 1.0))
    report.add("seconds_over_retinanet", ratios["seconds"], "time of an image of 500x375")
    return report


def fit_to_time(recipe: Recipe, source: Source, seconds: float, folder: Path) -> Recipe:
    """Scale the steps of all stages so that training takes about so many seconds.

    Two short trainings tell what a step takes, and what does not depend on the steps: tracing, validation, calibration.
    """
    sized = recipe.sized(source)
    one, other = (_seconds_of(_scaled(sized, share), source, folder / f"pilot{share}") for share in PILOTS)
    # The first may have taken longer, for what only the first training of a process does.
    each = max(other - one, LEAST_GROWTH * other) / (PILOTS[1] - PILOTS[0])
    share = max(PILOTS[0] + (seconds - one) / each, PILOTS[0])
    log.info("%s: %.2f of the recipe's steps are to take %.1f minutes", source.name, share, seconds / 60)
    return _scaled(sized, share)


def _seconds_of(recipe: Recipe, source: Source, run: Path) -> float:
    started = computing_seconds()
    train(recipe, source, run)
    return computing_seconds() - started


def _scaled(recipe: Recipe, share: float) -> Recipe:
    """Return a recipe with a share of the steps of each stage."""
    stages = {name: getattr(recipe, name) for name in TASKS}
    fewer = {k: replace(s, steps=max(round(s.steps * share), 1), passes=None) for k, s in stages.items()}
    return replace(recipe, **fewer)


def train_both(backbone: str, recipe: Recipe, source: Source, minutes: float | None) -> dict[str, Trained]:
    """Train and score the recipe, for about so many minutes if given, and RetinaNet for as long as the recipe took."""
    with TemporaryDirectory(prefix="overfeat-benchmark-") as name:
        folder = Path(name)
        if minutes is not None:
            recipe = fit_to_time(recipe, source, 60 * minutes, folder)
        ours = _train_and_score(FINETUNE, lambda: train(recipe, source, folder / "run").model, source, recipe)
    fit = partial(train_retinanet, backbone, source, recipe.train_split, ours.seconds, recipe.seed)
    return {FINETUNE: ours, RETINANET: _train_and_score(RETINANET, fit, source, recipe)}


def _train_and_score(name: str, fit: Callable[[], Predictor], source: Source, recipe: Recipe) -> Trained:
    started = computing_seconds()
    model = fit()
    seconds = computing_seconds() - started
    model = with_changes(model, {})  # with the arithmetic for this machine, as `evaluate` does
    figures = evaluate(model, source, recipe.val_split, title=name)
    shown = ", ".join(f"{figure} {figures[figure]:.3f}" for figure in FIGURES)
    log.info("%s on %s: %.1f minutes, %s", name, source.name, seconds / 60, shown)
    return Trained(model, seconds, figures)


def time_images(source: Source, split: str, models: Sequence[Predictor]) -> list[float]:
    """Time each model on the split's first image, resized to 500x375, in turns; return the medians in seconds."""
    decoded = (decode_image(record.image_bytes) for record in source.records(split))
    image = next(image for image, status in decoded if status == "")
    pixels = tf.cast(tf.image.resize(image, SIZE, antialias=True), tf.uint8).numpy()[None]
    times = time_in_turn([partial(model.detect, pixels) for model in models], CALLS)
    return [median(each) for each in zip(*times, strict=True)]


def _table(name: str, rows: dict[str, list[list[float]]]) -> str:
    """Render the medians over the repetitions in Markdown."""
    lines = []
    for detector, values in rows.items():
        minutes, *others = (median(column) for column in zip(*values, strict=True))
        lines.append((detector, f"{minutes:.1f}", *(f"{value:.3f}" for value in others)))
    return markdown_table((name, "minutes", "mAP50", "mAP", "AP75", "s an image"), lines)


def train_retinanet(backbone: str, source: Source, split: str, seconds: float, seed: int = 0) -> "RetinaNet":
    """Train a RetinaNet for so many seconds of `computing_seconds`, all preparation included.

    Args:
        backbone: A model with pretrained weights, as `pretrained.open_model` takes it.
        source, split: The data.
        seconds: What training may take.
        seed: Of weights, data order and augmentation.
    """
    ends = computing_seconds() + seconds
    keras.utils.set_random_seed(seed)
    objects = read_objects(source, split)
    sides = np.sqrt(np.prod(objects.sides * objects.images, axis=1)) / objects.images.max(axis=1) * SIDE
    finest = MIDDLE if np.percentile(sides, 1) / SHRINK >= SMALLEST_AT_MIDDLE else FINEST
    most = max(len(record.labels) for record in source.records(split))
    detector = build_retinanet(backbone, len(source.class_names), finest)
    # Without XLA, as `train`: on processors its convolutions are slower.
    detector.compile(keras.optimizers.Adam(LEARNING_RATE, global_clipnorm=CLIP), jit_compile=False)
    batches = training_batches(source, split, _views(most), BATCH, seed)
    # One epoch without end: the callback stops it.
    detector.fit(batches, steps_per_epoch=10**9, callbacks=[TimedRate(ends)], verbose=0, shuffle=False)
    return RetinaNet(detector, source.class_names)


def build_retinanet(backbone: str, classes: int, finest: int = FINEST) -> "keras_hub.models.RetinaNetObjectDetector":
    """Build a RetinaNet on a backbone whose batch normalisation stays in inference mode.

    Args:
        backbone: As `pretrained.open_model` takes it.
        classes: Number of classes.
        finest: The first level, of stride 2 ** finest.
    """
    import keras_hub

    model, maps = open_maps(backbone)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    encoder = keras_hub.models.FeaturePyramidBackbone(inputs=model.inputs, outputs=maps)
    encoder.pyramid_outputs = maps
    features = keras_hub.models.RetinaNetBackbone(
        encoder, min_level=finest, max_level=COARSEST, use_p5=False, image_shape=(SIDE, SIDE, 3)
    )
    decoder = keras_hub.layers.NonMaxSuppression("yxyx", True, OVERLAP, LEAST_SCORE, MOST)
    detector = keras_hub.models.RetinaNetObjectDetector(
        features, classes, "yxyx", use_prediction_head_norm=True, prediction_decoder=decoder
    )
    # KerasHub 0.32 gives the prior's bias to the box head, where it has no meaning, and draws kernels at 0.05.
    for head, bias in ((detector.classification_head, -math.log((1 - PRIOR) / PRIOR)), (detector.box_head, 0.0)):
        last = head.prediction_layer
        last.bias.assign(tf.fill(last.bias.shape, bias))
        last.kernel.assign(tf.random.normal(last.kernel.shape, stddev=DEVIATION))
    return detector


def open_maps(backbone: str) -> tuple[keras.Model, dict[str, keras.KerasTensor]]:
    """Open a backbone; return it and the maps P3, P4 and P5 that the recipe `finetune` would take at their strides.

    Raises:
        ValueError: there is no map at one of the strides.
    """
    model = of_any_size(open_model(backbone, "imagenet"))
    return model, {
        f"P{level}": model.get_layer(activation_at_stride(model, backbone, 2**level)).output for level in (3, 4, 5)
    }


class TimedRate(keras.callbacks.Callback):
    """Warm the learning rate up, let it fall along a cosine of the time, and stop when the time has passed."""

    def __init__(self, ends: float):
        super().__init__()
        self._ends, self._started = ends, 0.0

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._started = computing_seconds()

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        passed = min((computing_seconds() - self._started) / max(self._ends - self._started, 1e-9), 1.0)
        warm = min((batch + 1) / WARM_UP, 1.0)
        self.model.optimizer.learning_rate = LEARNING_RATE * warm * (1 + np.cos(np.pi * passed)) / 2

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.model.stop_training = computing_seconds() >= self._ends


class RetinaNet(Predictor):
    """A trained RetinaNet that detects."""

    tasks = (DETECTION.name,)

    def __init__(self, detector: "keras_hub.models.RetinaNetObjectDetector", labels: tuple[str, ...]):
        self.labels = labels

        @tf.function(input_signature=[ONE_IMAGE], autograph=False)
        def detect(image: tf.Tensor) -> Answers:
            size = tf.cast(tf.shape(image)[:2], tf.float32)
            extent = size * (SIDE / tf.reduce_max(size))
            pixels = resample(image, tf.concat([[0.0, 0.0], extent], axis=0), SIDE, GREY)[None]
            pixels = tf.ensure_shape(pixels, [1, SIDE, SIDE, 3])
            found = detector.decode_predictions(detector(pixels, training=False), pixels)
            return found | {"boxes": tf.clip_by_value(found["boxes"] / tf.tile(extent, [2]), 0.0, 1.0)}

        self._detect = detect

    def _run(self, signature: str, **inputs: np.ndarray) -> Answers:
        if signature not in DETECTION.signatures:
            raise ValueError(f"expected a call of {', '.join(DETECTION.signatures)}; got '{signature}'")
        rows = [self._answer_one(image) for images in inputs.values() for image in images]
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    def _answer_one(self, image: bytes | np.ndarray) -> Answers:
        """Detect in one image, encoded or pixels; one that can't be read has no detections."""
        pixels, status = decode_image(image) if isinstance(image, bytes) else (image, tf.constant(""))
        found: dict = self._detect(pixels) if status == "" else {"num_detections": [0]}
        count = int(found["num_detections"][0])
        boxes, scores, classes = np.zeros((MOST, 4), np.float32), np.zeros(MOST, np.float32), np.zeros(MOST, np.float32)
        if count:
            boxes[:count], scores[:count] = found["boxes"][0, :count], found["confidence"][0, :count]
            classes[:count] = found["labels"][0, :count] + 1
        return {
            "detection_boxes": boxes,
            "detection_scores": scores,
            "detection_classes": classes,
            "num_detections": np.float32(count),
            "detection_class_entities": np.array([b"", *map(str.encode, self.labels)], object)[classes.astype(int)],
            "image_size": np.array(pixels.shape[:2], np.int32),
            "status": status.numpy(),
        }


def _views(most: int) -> Views:
    """Show each image that has boxes once a pass, as (pixels [SIDE, SIDE, 3], KerasHub's "boxes" and "labels").

    There are `most` + 1 rows of boxes (yxyx, pixels) and labels, those without an object -1.
    """

    def draw(seed: tf.Tensor, record: dict) -> tuple[Example, ...]:
        chances, count = tf.random.stateless_uniform([16], seed), tf.size(record["labels"])
        subject = tf.where(count > 0, below(chances[0], tf.maximum(count, 1)), -1)
        picture, _ = random_picture(chances[1:7], record["image"], record, subject, VIEWS)
        extent = picture.size * (SIDE * tf.exp(-chances[7] * math.log(SHRINK)) / tf.reduce_max(picture.size))
        corner = chances[8:10] * (SIDE - extent)
        pixels = draw_image(
            chances[10:15], picture.pixels, tf.concat([corner, corner + extent], axis=0), SIDE, GREY, VIEWS.colour
        )
        kept = tf.where(~picture.crowd)[:, 0]
        boxes = tf.gather(picture.boxes, kept) * tf.tile(extent, [2]) + tf.tile(corner, [2])
        labels = tf.cast(tf.gather(picture.labels, kept), tf.float32)
        rows = [[0, most + 1 - tf.size(labels)]]
        targets = {
            "boxes": tf.ensure_shape(tf.pad(boxes, [*rows, [0, 0]], constant_values=-1.0), [most + 1, 4]),
            "labels": tf.ensure_shape(tf.pad(labels, rows, constant_values=-1.0), [most + 1]),
        }
        return ((pixels, targets),)

    return Views(has_boxes, draw)
