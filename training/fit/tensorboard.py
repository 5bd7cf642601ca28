"""What TensorBoard shows: a run for training and one for validation of each stage, and a row of hyperparameters.

All that a stage's training writes goes into one file, and so does its validation: TensorBoard follows one file a folder
while a run is under way, and Keras's own callback would write a second one.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image
from tensorboard.plugins.hparams import api as hparams
from tensorboard.plugins.pr_curve import summary as pr_curve

from overfeat_tf.draw.pictures import draw_boxes, draw_classes, draw_filters
from overfeat_tf.images.decode import decode_image
from overfeat_tf.models.model import TASKS, Model
from training.evaluation.evaluate import Callback, evaluate
from training.evaluation.metrics import Answer
from training.evaluation.recall import THRESHOLDS, PrecisionRecall
from training.recipes import Recipe
from training.recipes.settings import leaves
from training.sources.record import Record, Source

POINTS = 500  # of a curve by steps in an epoch
PICTURES, SIDE = 6, 640  # images, and their longer side in pixels: larger ones fill the disk
COUNTED = 100_000  # weights of a layer in its histogram: enough for its shape, however wide the layer
PROFILED = (5, 10)  # steps: after the first ones, which trace and allocate
FIGURES = {  # of the table of hyperparameters
    "classification": {"top1": "classification top-1"},
    "localization": {"localization1_error": "localization error"},
    "detection": {"map": "mAP", "map50": "mAP at IoU 0.5"},
}

log = logging.getLogger(__name__)


def stage_boards(
    stage: str,
    model: Model,
    recipe: Recipe,
    source: Source,
    images: int,
    logs: Path,
    steps: int,
    applied: Callable[[], AbstractContextManager] = nullcontext,
    profile: bool = False,
) -> list[keras.callbacks.Callback]:
    """List the callbacks that write a stage's boards into `logs`, in an order in which each sees what others add.

    Args:
        stage: One of `TASKS`.
        model: What is fitted, as inference sees it.
        recipe, source: What it is fitted to.
        images: How many validation images are scored after each epoch.
        logs: The stage's folder of logs.
        steps: In an epoch.
        applied: Makes the weights those to be validated, for as long as it takes.
        profile: Also trace a few steps of the first epoch.
    """
    train = tf.summary.create_file_writer(str(logs / "train"))
    boards: list[keras.callbacks.Callback] = [Graph(train), Steps(train, getattr(recipe, stage).batch, steps)]
    validation = None
    if recipe.val_split in source.splits:
        validation = tf.summary.create_file_writer(str(logs / "validation"))
        if stage == "classification" or images:
            boards.append(Validation(validation, stage, model, source, recipe.val_split, images, applied))
    boards += [Weights(train, model), Epochs(train, validation)]
    return [*boards, ProfiledSteps(logs / "train", min(PROFILED[1], steps))] if profile else boards


def write_settings(run: Path, recipe: Recipe, stages: Sequence[str]) -> None:
    """Write a training's row of the table of hyperparameters, named by its folder, with the figures of its stages."""
    shown = [
        hparams.Metric(f"epoch_{figure}", f"{stage}/validation", name)
        for stage, figures in FIGURES.items()
        for figure, name in figures.items()
        if stage in stages
    ]
    others = [stage for stage in TASKS if stage not in stages]
    settings = {
        key: value if isinstance(value, bool | int | float | str) else str(value)  # the table has no other kinds
        for key, (_, value) in leaves(recipe)
        if key.split(".")[0] not in others
    }
    with tf.summary.create_file_writer(str(run / "logs")).as_default(step=0):
        hparams.hparams_config([hparams.HParam(key) for key in settings], shown)
        hparams.hparams(settings, trial_id=str(run))  # leaving the block flushes it


class Graph(keras.callbacks.Callback):
    """Write the graph of the forward pass, a view at a time, once, as fitting begins."""

    def __init__(self, writer: tf.summary.SummaryWriter):
        super().__init__()
        self._writer = writer

    def on_train_begin(self, logs: dict | None = None) -> None:
        (pixels,) = self.model.inputs
        view = [tf.TensorSpec([1, *pixels.shape[1:]], pixels.dtype)]
        forward = tf.function(lambda pixels: self.model(pixels, training=False), view, autograph=False)
        with self._writer.as_default(step=0):
            tf.summary.graph(forward.get_concrete_function().graph.as_graph_def())
        self._writer.flush()


class Steps(keras.callbacks.Callback):
    """Write each step's own losses and metrics, and images (views) a second without what happens between epochs.

    Where an epoch has more than `POINTS` steps, a point is the mean since the one before. By the optimizer's count of
    steps, which goes on where a run is resumed.
    """

    def __init__(self, writer: tf.summary.SummaryWriter, batch: int, steps: int):
        super().__init__()
        self._writer, self._batch, self._every = writer, batch, max(1, steps // POINTS)
        self._steps, self._sums, self._began = 0, dict[str, float](), 0.0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Start the clock; Keras's means begin anew."""
        self._steps, self._sums, self._began = 0, {}, time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Write what a step has added to the means over the epoch so far, which Keras hands over."""
        self._steps += 1
        if self._steps % self._every:
            return
        now = time.perf_counter()
        with self._writer.as_default(step=int(self.model.optimizer.iterations.numpy())):
            tf.summary.scalar("images_per_second", self._every * self._batch / max(now - self._began, 1e-9))
            for name, mean in (logs or {}).items():
                total = float(mean) * self._steps
                tf.summary.scalar(f"step_{name}", (total - self._sums.get(name, 0.0)) / self._every)
                self._sums[name] = total
        self._began = now


class Epochs(keras.callbacks.Callback):
    """Write each epoch's figures, those of training and of validation under the same names, and the learning rate."""

    def __init__(self, train: tf.summary.SummaryWriter, validation: tf.summary.SummaryWriter | None):
        super().__init__()
        self._train, self._validation = train, validation

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        learning_rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        for name, value in {**(logs or {}), "learning_rate": learning_rate}.items():
            writer = self._validation if name.startswith("val_") else self._train
            if writer is not None:
                with writer.as_default(step=epoch):
                    tf.summary.scalar(f"epoch_{name.removeprefix('val_')}", value)
        for each in (self._train, self._validation):
            if each is not None:
                each.flush()


class Weights(keras.callbacks.Callback):
    """Write the first layer's filters (Fig. 2) and a histogram of each learning layer's weights after each epoch."""

    def __init__(self, writer: tf.summary.SummaryWriter, model: Model):
        super().__init__()
        self._writer, self._network = writer, model.network

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        kernels = (weight for weight in self._network.features.weights if len(weight.shape) == 4)
        first = next((kernel for kernel in kernels if kernel.shape[2] == 3), None)  # none where a layer mixes colours
        with self._writer.as_default(step=epoch):
            if first is not None:
                tf.summary.image("first_layer", np.asarray(draw_filters(first.numpy()))[None])
            for weight in self.model.trainable_variables:
                values = tf.reshape(weight.value, [-1])
                tf.summary.histogram(f"weights/{weight.path}", values[:: -(-values.shape[0] // COUNTED)])
        self._writer.flush()


class Validation(keras.callbacks.Callback):
    """Score a few validation images after each epoch, through the one inference path, and draw the first ones.

    Localization gives val_localization1_error, val_localization5_error, val_top1_error and val_top5_error, detection
    val_map, val_map50 and precision-recall curves; they are added to the epoch's logs, so this has to stand before
    whatever reads them. Classification, whose top-1 and top-5 Keras measures, gives pictures alone.
    """

    def __init__(
        self,
        writer: tf.summary.SummaryWriter,
        stage: str,
        model: Model,
        source: Source,
        split: str,
        images: int,
        applied: Callable[[], AbstractContextManager],
    ):
        super().__init__()
        self._writer, self._stage, self._scored, self._applied = writer, stage, model, applied
        self._source, self._split, self._images = source, split, images

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Score, draw and write."""
        with self._writer.as_default(step=epoch), self._applied():
            figures = self._look(epoch)
        self._writer.flush()
        if logs is not None:
            logs |= figures

    def _look(self, epoch: int) -> dict[str, float]:
        if self._stage == "detection":
            return self._detection(epoch)
        return self._localization(epoch) if self._stage == "localization" else self._classification()

    def _detection(self, epoch: int) -> dict[str, float]:
        curves = PrecisionRecall(self._source.class_names)
        shown: list[tuple[Record, Answer]] = []

        def process(record: Record, answer: Answer) -> None:
            curves.process(record, answer)
            if len(shown) < PICTURES and len(record.labels) and not answer["status"]:
                shown.append((record, answer))

        figures = self._evaluate(("detection",), process, epoch)
        if not figures:
            return {}
        least = curves.best_threshold()  # calibrated once the stage is done
        self._draw([_boxes(self._source, record, answer, least) for record, answer in shown])
        for name, curve in curves.evaluate():
            written = pr_curve.raw_data_pb(f"precision_recall/{name}", *curve, num_thresholds=THRESHOLDS)
            tf.summary.experimental.write_raw_pb(written.SerializeToString(), step=epoch)
        return {"val_map": figures["map"], "val_map50": figures["map50"]}

    def _localization(self, epoch: int) -> dict[str, float]:
        shown: list[tuple[Record, Answer]] = []

        def process(record: Record, answer: Answer) -> None:
            if len(shown) < PICTURES and not answer["status"]:
                shown.append((record, {**answer, "num_detections": np.minimum(answer["num_detections"], 1)}))

        figures = self._evaluate(("classification", "localization"), process, epoch)
        self._draw([_boxes(self._source, *pair) for pair in shown])  # the best guess of each
        return {f"val_{name}": value for name, value in figures.items() if name.endswith("_error")}

    def _evaluate(self, protocols: Sequence[str], process: Callback, epoch: int) -> dict[str, float]:
        """Return the figures of the images by the protocols; `process` gets each answer of the last protocol."""
        callbacks = {protocols[-1]: [process]}
        try:
            return evaluate(self._scored, self._source, self._split, protocols, self._images, True, callbacks)
        except ValueError as error:  # such as images without objects: no reason to end a run
            log.warning("no figures of %s in epoch %d: %s", self._stage, epoch + 1, error)
            return {}

    def _classification(self) -> dict[str, float]:
        records = self._source.records(self._split, PICTURES)
        images = [(record, *decode_image(record.image_bytes)) for record in records]
        self._draw([self._named(record, pixels.numpy()) for record, pixels, status in images if not status.numpy()])
        return {}

    def _named(self, record: Record, pixels: np.ndarray) -> Image.Image:
        """Write the three likeliest classes over an image, and the true ones beneath them."""
        probabilities = self._scored.classify([pixels])["probs"][0]
        best = [(self._source.class_names[i], float(probabilities[i])) for i in np.argsort(-probabilities)[:3]]
        truth = dict.fromkeys(f"truth: {self._source.class_names[label]}" for label in record.labels)
        return draw_classes(pixels, [*best, *((name, None) for name in truth)])

    def _draw(self, pictures: list[Image.Image]) -> None:
        for number, picture in enumerate(pictures):
            picture.thumbnail((SIDE, SIDE))
            tf.summary.image(f"{self._split}/{number}", np.asarray(picture)[None])


class ProfiledSteps(keras.callbacks.Callback):
    """Trace a few steps for the profiler, and mark where each begins and ends, without which it gives no time a step.

    Args:
        logs: Where the trace is written.
        last: The last step that is traced, counted from 1 as the process begins.
    """

    def __init__(self, logs: Path, last: int):
        super().__init__()
        self._logs, self._first, self._last, self._step = str(logs), min(PROFILED[0], last), last, 0
        self._mark: tf.profiler.experimental.Trace | None = None

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Begin a step, and the trace with the first one."""
        self._step += 1
        if self._step == self._first:
            tf.profiler.experimental.start(self._logs)
        if self._first <= self._step <= self._last:
            self._mark = tf.profiler.experimental.Trace("train", step_num=batch, _r=1)
            self._mark.__enter__()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """End it, and the trace with the last one."""
        if self._mark is not None:
            self._mark.__exit__(None, None, None)
            self._mark = None
            if self._step == self._last:
                tf.profiler.experimental.stop()

    def on_train_end(self, logs: dict | None = None) -> None:
        """End a trace whose last step the stage does not reach: there can be only one at a time."""
        if self._first <= self._step < self._last:
            tf.profiler.experimental.stop()


def _boxes(source: Source, record: Record, answer: Answer, least_score: float = 0.0) -> Image.Image:
    names = [source.class_names[label] for label in record.labels]
    return draw_boxes(record.image_bytes, answer, (record.boxes, names), least_score)
