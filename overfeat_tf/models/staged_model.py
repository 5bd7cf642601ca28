"""Images answered one at a time, with the stages that each answer came from (Fig. 6)."""

import numpy as np
import tensorflow as tf

from overfeat_tf.images.decode import decode_image
from overfeat_tf.models import inference as tasks
from overfeat_tf.models.batches import ONE_IMAGE
from overfeat_tf.models.inference import Detections, Stages
from overfeat_tf.models.model import Model
from overfeat_tf.models.predictor import Answers, choose_task
from overfeat_tf.scan.dense_scan import ScaleScan


class StagedModel:
    """A task of a run's, with the stages of its answers.

    Args:
        model: The run.
        task: Of its `answered_tasks`; if left out, the first that it was trained for of detection, localization and
            classification.

    Attributes:
        model: The run.
        task: Which of the three it is.

    Raises:
        ValueError: a SavedModel, a committee, views that are crops, or a task that the run does not answer.
    """

    def __init__(self, model: object, task: str | None = None):
        if not isinstance(model, Model):
            raise ValueError(
                "expected a run to show the stages of; got a SavedModel, which gives answers alone: use its run"
            )
        if model.others:
            raise ValueError("expected one network to show the stages of; a committee's members each have their own")
        if model.options.views != "dense":
            raise ValueError(f"expected dense views to show the stages of; got '{model.options.views}': use its scales")
        self.model = model
        self.task = choose_task(model, task)
        self._run = tf.function(self._stages, [ONE_IMAGE], autograph=False)

    def __call__(self, image: bytes) -> tuple[Answers, Stages | None]:
        """Answer an encoded image as `Model.detect`, `localize` or `classify` do, without the batch's dimension.

        Returns:
            The answer with its "status", and its stages in numpy; no stages of an image that can't be read.
        """
        pixels, status = decode_image(tf.constant(image))
        if status == "":
            stages = self._run(pixels)
            answer = self._named(stages.answer, tf.shape(pixels)[:2])
        else:
            stages, answer = None, self._unread(image)
        row = {key: values[0].numpy() for key, values in answer.items()}
        return row, tf.nest.map_structure(lambda value: None if value is None else value.numpy(), stages)

    def _stages(self, image: tf.Tensor) -> Stages:
        network, options = self.model.network, self.model.options
        if self.task == "detection":
            return tasks.detect_in_stages(network, image, options, self.model.calibration)
        if self.task == "localization":
            return tasks.localize_in_stages(network, image, options)
        return tasks.classify_in_stages([network], image, options)

    def _named(self, answer: Detections | tf.Tensor, size: tf.Tensor) -> dict[str, tf.Tensor]:
        batch, status = tf.nest.map_structure(lambda value: value[None], answer), tf.constant([""])
        if isinstance(answer, Detections):
            return self.model.inference.box_outputs(batch, size[None], status)
        return self.model.inference.class_outputs(batch, status)

    def _unread(self, image: bytes) -> dict[str, tf.Tensor]:
        call = {"detection": "detect", "localization": "localize", "classification": "classify"}[self.task]
        return getattr(self.model.inference, call)(tf.constant([image]))


def at_coarse_stride(scan: ScaleScan, last_pool: int) -> ScaleScan:
    """Leave a fine scan's windows at the first offset of the last pooling alone: what a coarse scan gives (3.3)."""
    return ScaleScan(*(None if values is None else values[::last_pool, ::last_pool] for values in scan))


def score_map(scan: ScaleScan, background: bool) -> np.ndarray:
    """Give a scan's softmax scores float32 [h, w, classes], without the background's."""
    lines = tasks.window_scores(scan, background).numpy()
    return lines.reshape(*scan.logits.shape[:2], -1)
