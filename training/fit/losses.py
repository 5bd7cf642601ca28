"""The losses of the three stages; each gives one number an image [B], so that the mean over a batch is the same
however many devices share it."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from overfeat_tf import boxes as box_ops
from overfeat_tf.arguments import check_choice
from overfeat_tf.boxes import BOX_FORMS
from training.views.targets import BACKGROUND, IGNORED

NEGATIVES = ("offending", "random")
BOX_LOSSES = ("l2", "iou", "giou", "giou_l1")
SMOOTHED = 0.05  # distance of two numbers up to which L1 is squared (Girshick 2015)


class Criterion:
    """The criterion of a stage: a loss for each output, the figures made of them, and metrics.

    All figures are means since they were last reset: "loss", the weighted sum; of several outputs each one's as
    "NAME_loss"; and the metrics.

    Args:
        losses: The loss of a model's only output, or of each one by its name.
        weights: Of the losses by name; 1 where left out.
        metrics: Of the only output.
    """

    def __init__(
        self,
        losses: keras.losses.Loss | dict[str, keras.losses.Loss],
        weights: dict[str, float] | None = None,
        metrics: Sequence[keras.metrics.Metric] = (),
    ):
        self._losses, self._weights, self._metrics = losses, weights or {}, tuple(metrics)
        self._total = keras.metrics.Mean(name="loss")
        names = sorted(losses) if isinstance(losses, dict) and len(losses) > 1 else []
        self._each = {name: keras.metrics.Mean(name=f"{name}_loss") for name in names}

    @property
    def figures(self) -> list[keras.metrics.Metric]:
        """All figures, as Keras's metrics."""
        return [self._total, *self._metrics, *self._each.values()]

    @property
    def random_states(self) -> list[keras.Variable]:
        """The states of the losses' random generators."""
        losses = self._losses.values() if isinstance(self._losses, dict) else [self._losses]
        generators = [getattr(loss, "seed_generator", None) for loss in losses]
        return [generator.state for generator in generators if generator is not None]

    def loss(self, targets, outputs) -> tf.Tensor:
        """Return the loss of a batch: a device's share of it, so that the devices' gradients add up."""
        # Keras divides each loss by the number of devices.
        devices = tf.distribute.get_strategy().num_replicas_in_sync
        size = tf.shape(tf.nest.flatten(outputs)[0])[0]
        if isinstance(self._losses, dict):
            total = 0.0
            for name, loss in sorted(self._losses.items()):
                value = loss(targets[name], outputs[name])
                if name in self._each:
                    self._each[name].update_state(value * devices, sample_weight=size)
                total += self._weights.get(name, 1.0) * value
        else:
            total = self._losses(targets, outputs)
        self._total.update_state(total * devices, sample_weight=size)
        return total

    def score(self, targets, outputs) -> None:
        """Add a batch to the metrics, but for what is IGNORED."""
        for metric in self._metrics:
            metric.update_state(targets, outputs, sample_weight=tf.cast(targets != IGNORED, tf.float32))


@keras.saving.register_keras_serializable("overfeat_tf")
class BoxLoss(keras.losses.Loss):
    """How far predicted boxes are from the true ones, over the windows that learn one (4.2).

    `y_true` is float32 [B, h, w, 5]: four edges in window sides, and the object's class + 1 where the window learns
    its box, else 0. `y_pred` is [B, h, w, 4]; or [B, h, w, 4 * classes], where only the box of the object's own
    class learns (PCR, 4.3).

    Args:
        kind: "l2" is the squared distance (4.2). "iou" is 1 - IoU (6, ii) and "giou" 1 - generalised IoU, both with the
            squared distance added where the boxes share nothing: IoU has a gradient only "provided there is some
            overlap", and generalised IoU has none for a box turned inside out. "giou_l1" adds half the smoothed L1
            distance to generalised IoU wherever the boxes are, in the manner of DETR (Carion et al. 2020): alone it
            makes boxes too large.
        form: What the four numbers of `y_pred` are, one of `BOX_FORMS`; the distances are between these.
    """

    def __init__(self, kind: str = BOX_LOSSES[0], form: str = BOX_FORMS[0], **kw):
        super().__init__(**kw)
        check_choice("box_loss", kind, BOX_LOSSES)
        self.kind, self.form = kind, form

    def call(self, y_true, y_pred):
        truth, box_classes = y_true[..., :4], tf.cast(y_true[..., 4], tf.int32)
        values = own_boxes(y_pred, box_classes)
        numbers = box_ops.encode(truth, self.form)
        distance = tf.reduce_sum(tf.square(numbers - values), axis=-1)
        if self.kind != "l2":
            found = box_ops.decode(values, self.form)
            overlap = box_ops.iou(truth, found) if self.kind == "iou" else box_ops.giou(truth, found)
            if self.kind == "giou_l1":  # Keras averages the four numbers; beyond `delta` its slope is `delta`
                distance = keras.losses.huber(numbers, values, delta=SMOOTHED) * (2.0 / SMOOTHED)
            else:
                distance = tf.where(box_ops.intersection(truth, found) <= 0.0, distance, 0.0)
            distance = 1.0 - overlap + distance
        return _mean_where(box_classes > 0, distance)

    def get_config(self):
        return {**super().get_config(), "kind": self.kind, "form": self.form}


class _Entropy(keras.losses.Loss):
    """Cross-entropy of logits [..., classes].

    Args:
        class_weights: A factor on the loss of each class; None takes 1.
    """

    def __init__(self, class_weights: Sequence[float] | None = None, **kw):
        super().__init__(**kw)
        self.class_weights = class_weights

    def entropy(self, classes: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Return the weighted cross-entropy with classes int32 [...]."""
        entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(classes, logits)
        return _weighted(entropy, classes, self.class_weights)


class ClassLoss(_Entropy):
    """Cross-entropy of single windows: `y_true` is int32 [B] of classes or IGNORED, `y_pred` logits [B, classes]."""

    def call(self, y_true, y_pred):
        labels = tf.reshape(tf.cast(y_true, tf.int32), [-1])
        entropy = self.entropy(tf.maximum(labels, 0), y_pred)
        return entropy * tf.cast(labels != IGNORED, entropy.dtype)


class ObjectLoss(_Entropy):
    """Cross-entropy over an image's object windows alone, for a classifier that has no background class yet.

    `y_true` is int32 [B, h, w] of window labels (IGNORED, BACKGROUND, class + 1); `y_pred` logits [B, h, w, classes].
    """

    def call(self, y_true, y_pred):
        labels = tf.cast(y_true, tf.int32)
        return _mean_where(labels > BACKGROUND, self.entropy(tf.maximum(labels - 1, 0), y_pred))


class DetectionLoss(keras.losses.Loss):
    """Cross-entropy over an image's object windows and a few negatives picked on the fly (5).

    `y_true` is int32 [B, h, w] of window labels (IGNORED, BACKGROUND, class + 1); `y_pred` logits
    [B, h, w, 1 + classes].

    Args:
        negatives: "offending" takes the background windows with the highest loss, so those that score highest as
            anything else; "random" any, by `seed_generator`, whose state a checkpoint can keep.
        per_positive, at_least: How many negatives an image gives: so many for each object window, but at least.
        class_weights: A factor on the loss of each class; the background's is 1. None takes 1.
    """

    def __init__(
        self,
        negatives: str = "offending",
        per_positive: int = 3,
        at_least: int = 8,
        class_weights: Sequence[float] | None = None,
        **kw,
    ):
        super().__init__(**kw)
        check_choice("negatives", negatives, NEGATIVES)
        self.negatives, self.per_positive, self.at_least = negatives, per_positive, at_least
        self.class_weights = None if class_weights is None else (1.0, *class_weights)
        self.seed_generator = keras.random.SeedGenerator() if negatives == "random" else None

    def call(self, y_true, y_pred):
        labels = tf.reshape(tf.cast(y_true, tf.int32), [tf.shape(y_true)[0], -1])
        logits = tf.reshape(y_pred, [tf.shape(labels)[0], -1, y_pred.shape[-1]])
        entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(labels, 0), logits)
        positive, background = labels > BACKGROUND, labels == BACKGROUND
        merit = tf.stop_gradient(entropy)
        if self.seed_generator is not None:
            merit = keras.random.uniform(tf.shape(entropy), seed=self.seed_generator)
        rank = tf.argsort(tf.argsort(tf.where(background, merit, -1.0), direction="DESCENDING"))
        objects = tf.math.count_nonzero(positive, axis=1, keepdims=True, dtype=tf.int32)
        negative = background & (rank < tf.maximum(self.per_positive * objects, self.at_least))
        return _mean_where(positive | negative, _weighted(entropy, tf.maximum(labels, 0), self.class_weights))


def _mean_where(chosen: tf.Tensor, losses: tf.Tensor) -> tf.Tensor:
    """Average an image's losses [B, ...] where they are chosen, bool of the same shape; 0 for an image without any."""
    weights, axes = tf.cast(chosen, losses.dtype), list(range(1, losses.shape.rank))
    return tf.math.divide_no_nan(tf.reduce_sum(losses * weights, axes), tf.reduce_sum(weights, axes))


def _weighted(losses: tf.Tensor, classes: tf.Tensor, weights: Sequence[float] | None) -> tf.Tensor:
    """Multiply losses by the weights of their classes, int32 of the same shape."""
    return losses if weights is None else losses * tf.gather(tf.constant(weights, losses.dtype), classes)


def own_boxes(values: tf.Tensor, box_classes: tf.Tensor) -> tf.Tensor:
    """Pick from [..., 4 * classes] the four numbers of class `box_classes` - 1, int32 [...]; [..., 4] has but these."""
    classes = values.shape[-1] // 4
    if classes == 1:
        return values
    each = tf.reshape(values, tf.concat([tf.shape(values)[:-1], [classes, 4]], axis=0))
    return tf.gather(each, tf.maximum(box_classes - 1, 0), batch_dims=box_classes.shape.rank)
