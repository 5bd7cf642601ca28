"""Images answered one at a time, with the stages that each answer came from (Fig. 6)."""

from functools import partial

import tensorflow as tf

from overfeat_tf.images.decode import decode_image
from overfeat_tf.models.batches import ONE_IMAGE
from overfeat_tf.models.inference import Detections, Stages
from overfeat_tf.models.model import Model
from overfeat_tf.models.predictor import Answers, choose_task
from overfeat_tf.models.tasks import BY_NAME


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
        self._run = tf.function(partial(model.inference.stages, self.task), [ONE_IMAGE], autograph=False)

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
            stages = None
            answer = getattr(self.model.inference, BY_NAME[self.task].call)(tf.constant([image]))
        row = {key: values[0].numpy() for key, values in answer.items()}
        return row, tf.nest.map_structure(lambda value: None if value is None else value.numpy(), stages)

    def _named(self, answer: Detections | tf.Tensor, size: tf.Tensor) -> dict[str, tf.Tensor]:
        batch, status = tf.nest.map_structure(lambda value: value[None], answer), tf.constant([""])
        if isinstance(answer, Detections):
            return self.model.inference.box_outputs(batch, size[None], status)
        return self.model.inference.class_outputs(batch, status)
