"""Batches through the inference functions: encoded images or pixels in, the contract's named outputs out.

The images of a batch are run one after the other, each at its own size and shape: an image's answer cannot depend
on its batch, and memory does not grow with it. They share no product, unless `images_at_once` asks for it
(`together`). Measured on two cores with images of 500 x 375, a shared product would gain nothing for `accurate` at six
scales or with ten views (1.00 and 1.03 times as fast together), but 1.2 times for `accurate` and 1.4 times for `fast`
at one scale, where an image has few windows. Features share it: programs extract those of many images at one scale.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, partial

import tensorflow as tf

from overfeat_tf.images.decode import decode_image
from overfeat_tf.merge.calibration import Calibration
from overfeat_tf.models import inference
from overfeat_tf.models.inference import Detections, Stages
from overfeat_tf.models.tasks import BY_NAME, CLASSIFICATION, DETECTION, LOCALIZATION, TASKS, Task
from overfeat_tf.models.together import GroupAnswer, answer_batch
from overfeat_tf.network.convnet import Network
from overfeat_tf.options import InferenceOptions
from overfeat_tf.scan import features
from overfeat_tf.scan.dense_scan import ScaleScan, scan

ONE_IMAGE = tf.TensorSpec([None, None, 3], tf.uint8, name="image")
Outputs = dict[str, tf.Tensor]


class Inference:
    """A network with its options and labels, as tf.functions over batches.

    Args:
        network: The network.
        labels: Class names, in the order of the classifier's outputs without the background.
        options: Inference options.
        others: Further members of a committee, whose votes `classify` averages with the network's (Table 2).
        calibration: What turns `detect`'s accumulated scores into probabilities, if known.
    """

    def __init__(
        self,
        network: Network,
        labels: Sequence[str],
        options: InferenceOptions,
        others: Sequence[Network] = (),
        calibration: Calibration | None = None,
    ):
        self.network, self.labels, self.options = network, tuple(labels), options
        self._others, self._calibration = tuple(others), calibration

    def stages(self, task: str, image: tf.Tensor) -> Stages:
        """Answer one image uint8 [H, W, 3], at least one pixel; return the answer with its stages."""
        boxes = BY_NAME[task].has_boxes
        scans = [scan(network, image, self.options, boxes) for network in self._members(task)]
        return self._decide(task, scans, tf.shape(image)[:2])

    def _members(self, task: str) -> tuple[Network, ...]:
        return (self.network, *self._others) if task == CLASSIFICATION.name else (self.network,)

    def _decide(self, task: str, scans: Sequence[list[ScaleScan]], size: tf.Tensor) -> Stages:
        """Answer an image of int32 [2] (height, width) from each member's scans of it."""
        if task == DETECTION.name:
            return inference.detect(self.network, scans[0], size, self.options, self._calibration)
        if task == LOCALIZATION.name:
            return inference.localize(self.network, scans[0], size, self.options)
        return inference.classify(self._members(task), scans)

    @property
    def guesses(self) -> int:
        """Classes in an answer of `localize` and `classify`: the top k."""
        return min(self.options.top_k, self.network.num_classes)

    def detect(self, image_bytes: tf.Tensor) -> Outputs:
        """Find the objects in encoded images, string [B]: see `box_outputs`."""
        return self.box_outputs(*self._over_encoded(DETECTION, image_bytes))

    def detect_images(self, images: tf.Tensor) -> Outputs:
        """Find the objects in images uint8 [B, H, W, 3]: see `box_outputs`."""
        return self._boxes_of_pixels(DETECTION, images)

    def localize(self, image_bytes: tf.Tensor) -> Outputs:
        """Return the top k classes of encoded images, string [B], a box each: see `box_outputs`."""
        return self.box_outputs(*self._over_encoded(LOCALIZATION, image_bytes))

    def localize_images(self, images: tf.Tensor) -> Outputs:
        """Return the top k classes of images uint8 [B, H, W, 3], a box each: see `box_outputs`."""
        return self._boxes_of_pixels(LOCALIZATION, images)

    def classify(self, image_bytes: tf.Tensor) -> Outputs:
        """Classify encoded images, string [B].

        Returns:
            "classes" string [B, K] and "scores" float32 [B, K], falling, "status" string [B]; the row of an image
            that can't be read has empty classes and scores of 0.
        """
        logits, _, status = self._over_encoded(CLASSIFICATION, image_bytes)
        return self.class_outputs(logits, status)

    def class_outputs(self, logits: tf.Tensor, status: tf.Tensor) -> Outputs:
        """Return the top k classes of a batch of votes float32 [B, classes], named as by `classify`."""
        scores, classes = tf.math.top_k(_probabilities(logits), self.guesses)
        names = tf.where(scores > 0, tf.gather(tf.constant(self.labels), classes), "")
        return {"classes": names, "scores": scores, "status": status}

    def classify_images(self, images: tf.Tensor) -> Outputs:
        """Classify images uint8 [B, H, W, 3]: "logits" and "probs" float32 [B, classes]."""
        logits = self._over_pixels(CLASSIFICATION, images)
        return {"logits": logits, "probs": _probabilities(logits)}

    def extract_features(self, images: tf.Tensor) -> Outputs:
        """Compute the second full layer before its rectifier: "features" float32 [B, h, w, C] of uint8 [B, H, W, 3].

        Native size and coarse stride (3.2).
        """
        # An empty batch has no element to take the maps' size from: run one image of its size, and return none.
        batch, shape = tf.shape(images)[0], tf.shape(images)[1:]
        some = tf.cond(batch > 0, lambda: images, lambda: tf.zeros(tf.concat([[1], shape], axis=0), tf.uint8))
        return {"features": features.extract(self.network, [some], arithmetic=self.options.arithmetic)[0][:batch]}

    def box_outputs(self, found: Detections, image_size: tf.Tensor, status: tf.Tensor) -> Outputs:
        """Return a batch of boxes by the names of the contract and of the TF Object Detection API.

        Returns:
            "detection_boxes" float32 [B, N, 4] normalised yxyx, "detection_scores" float32 [B, N] falling,
            "detection_classes" float32 [B, N] from 1, 0 being padding, "num_detections" float32 [B],
            "detection_class_entities" string [B, N], "image_size" int32 [B, 2], "status" string [B].
        """
        return {
            "detection_boxes": found.boxes,
            "detection_scores": found.scores,
            "detection_classes": tf.cast(found.classes, tf.float32),
            "num_detections": tf.cast(found.count, tf.float32),
            "detection_class_entities": tf.gather(tf.constant(("", *self.labels)), found.classes),
            "image_size": image_size,
            "status": status,
        }

    def _boxes_of_pixels(self, task: Task, images: tf.Tensor) -> Outputs:
        batch, size = tf.shape(images)[:1], tf.shape(images)[1:3]
        return self.box_outputs(self._over_pixels(task, images), tf.tile(size[None], [batch[0], 1]), tf.fill(batch, ""))

    def _over_encoded(self, task: Task, image_bytes: tf.Tensor):
        """Decode and run each image; one that can't be read gets `_nothing` and says why in its status."""
        if self._runs_together(task):
            read = lambda index: decode_image(image_bytes[index])  # noqa: E731
            return answer_batch(self._groups[task.name], read, tf.size(image_bytes))
        function, nothing = self._functions[task.name], self._nothing(task)

        def one(data: tf.Tensor):
            image, status = decode_image(data)
            answer = tf.cond(status == "", lambda: function(image), lambda: nothing)
            return answer, tf.shape(image)[:2], status

        signature = (_specs(nothing), tf.TensorSpec([2], tf.int32), tf.TensorSpec([], tf.string))
        # One at a time: each keeps the cores busy, and two would need twice the memory.
        return tf.map_fn(one, image_bytes, fn_output_signature=signature, parallel_iterations=1)

    def _over_pixels(self, task: Task, images: tf.Tensor):
        """Run each image [H, W, 3] of a batch; images without a pixel get `_nothing`."""
        if self._runs_together(task):
            status = tf.where(tf.size(images) > 0, "", "no pixel")
            return answer_batch(self._groups[task.name], lambda index: (images[index], status), tf.shape(images)[0])[0]
        function, nothing = self._functions[task.name], self._nothing(task)

        def one(image: tf.Tensor):
            return tf.cond(tf.size(image) > 0, lambda: function(image), lambda: nothing)

        return tf.map_fn(one, images, fn_output_signature=_specs(nothing), parallel_iterations=1)

    def _runs_together(self, task: Task) -> bool:
        """Return whether images share products: not in a committee of different networks, whose canvases differ."""
        return self.options.images_at_once > 1 and len({each.preset for each in self._members(task.name)}) == 1

    def _nothing(self, task: Task):
        """Return the answer for an image that cannot be read."""
        if task == CLASSIFICATION:
            return tf.fill([self.network.num_classes], -float("inf"))
        return inference.no_detections(self.options.max_detections if task == DETECTION else self.guesses)

    @cached_property
    def _functions(self) -> dict[str, Callable]:
        """Each task's tf.function of one image, traced once whatever signatures call it."""

        def one_image(task: str) -> Callable:
            return tf.function(lambda image: self.stages(task, image).answer, [ONE_IMAGE], autograph=False)

        return {task: one_image(task) for task in TASKS}

    @cached_property
    def _groups(self) -> dict[str, GroupAnswer]:
        """Each task's answers for images with equal canvases."""
        return {name: self._group(task) for name, task in BY_NAME.items()}

    def _group(self, task: Task) -> GroupAnswer:
        def decide(scans: Sequence[list[ScaleScan]], size: tf.Tensor):
            return self._decide(task.name, scans, size).answer

        return GroupAnswer(self._members(task.name), self.options, task.has_boxes, decide, partial(self._nothing, task))


def _specs(values):
    return tf.nest.map_structure(lambda value: tf.TensorSpec(value.shape, value.dtype), values)


def _probabilities(logits: tf.Tensor) -> tf.Tensor:
    """Softmax over the last axis; 0 everywhere for a row of -inf, the answer for nothing."""
    return tf.math.divide_no_nan(tf.exp(logits), tf.reduce_sum(tf.exp(logits), axis=-1, keepdims=True))
