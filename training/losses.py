"""The losses of the three stages; each gives one number an image [B], so that the mean over a batch is the same
however many devices share it."""

import keras
import tensorflow as tf

from overfeat_tf import boxes as box_ops
from overfeat_tf.boxes import BOX_FORMS
from training.limits import check_choice
from training.targets import BACKGROUND

NEGATIVES = ("offending", "random")
BOX_LOSSES = ("l2", "relative", "iou", "giou")
NARROWEST = 4.0  # of "relative": a narrower object counts as one of this aspect


class BoxLoss(keras.losses.Loss):
    """How far predicted boxes are from the true ones, over the windows that teach (4.2).

    `y_true` is float32 [B, h, w, 5]: four edges in window sides, and the object's class + 1 where the window teaches,
    else 0. `y_pred` is [B, h, w, 4]; or [B, h, w, 4 * classes], of which only the object's own class's box learns
    (PCR, 4.3).

    Args:
        kind: "l2" is the squared distance (4.2). "relative" is the squared distance of the edges, where an error across
            an object counts as many times as the object is longer than wide: a square object bears it, a narrow one
            does not. "iou" is 1 - IoU (6, ii) and "giou" 1 - generalised IoU, both with the squared distance added where the boxes share nothing: IoU has a
            gradient only "provided there is some overlap", and generalised IoU has none for a box turned inside out.
        form: What the four numbers of `y_pred` are, one of `BOX_FORMS`; the squared distance is between these.
    """

    def __init__(self, kind: str = BOX_LOSSES[0], form: str = BOX_FORMS[0], name="boxes", **kw):
        super().__init__(name=name, **kw)
        check_choice("box_loss", kind, BOX_LOSSES)
        self.kind, self.form = kind, form

    def call(self, y_true, y_pred):
        truth, taught = y_true[..., :4], tf.cast(y_true[..., 4], tf.int32)
        values = own_boxes(y_pred, taught)
        distance = tf.reduce_sum(tf.square(box_ops.encode(truth, self.form) - values), axis=-1)
        if self.kind == "relative":
            sides = truth[..., 2:] - truth[..., :2]
            longer = tf.reduce_max(sides, axis=-1, keepdims=True)
            weights = tf.math.divide_no_nan(longer, tf.maximum(sides, longer / NARROWEST))
            errors = (box_ops.decode(values, self.form) - truth) * tf.concat([weights, weights], axis=-1)
            distance = tf.reduce_sum(tf.square(errors), axis=-1)
        elif self.kind != "l2":
            found = box_ops.decode(values, self.form)
            overlap = box_ops.iou(truth, found) if self.kind == "iou" else box_ops.giou(truth, found)
            apart = box_ops.intersection(truth, found) <= 0.0
            distance = 1.0 - overlap + tf.where(apart, distance, 0.0)
        teaches = tf.cast(taught > 0, distance.dtype)
        return tf.math.divide_no_nan(
            tf.reduce_sum(distance * teaches, axis=[1, 2]), tf.reduce_sum(teaches, axis=[1, 2])
        )


class DetectionLoss(keras.losses.Loss):
    """Cross-entropy over an image's object windows and a few negatives picked on the fly (5).

    `y_true` is int32 [B, h, w] of window labels (IGNORED, BACKGROUND, class + 1); `y_pred` logits
    [B, h, w, 1 + classes].

    Args:
        negatives: "offending" takes the background windows with the highest loss, so those that score highest as
            anything else; "random" any, by `seed_generator`, whose state a checkpoint can keep.
        per_positive, at_least: How many negatives an image gives: so many for each object window, but at least.
    """

    def __init__(self, negatives: str = "offending", per_positive: int = 3, at_least: int = 8, name="detection", **kw):
        super().__init__(name=name, **kw)
        check_choice("negatives", negatives, NEGATIVES)
        self.negatives, self.per_positive, self.at_least = negatives, per_positive, at_least
        self.seed_generator = keras.random.SeedGenerator() if negatives == "random" else None

    def call(self, y_true, y_pred):
        labels = tf.reshape(tf.cast(y_true, tf.int32), [tf.shape(y_true)[0], -1])
        logits = tf.reshape(y_pred, [tf.shape(labels)[0], -1, y_pred.shape[-1]])
        entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(labels, 0), logits)
        positive = tf.cast(labels > BACKGROUND, entropy.dtype)
        background = labels == BACKGROUND
        merit = tf.stop_gradient(entropy)
        if self.seed_generator is not None:
            merit = keras.random.uniform(tf.shape(entropy), seed=self.seed_generator)
        rank = tf.argsort(tf.argsort(tf.where(background, merit, -1.0), direction="DESCENDING"))
        wanted = tf.maximum(self.per_positive * tf.reduce_sum(positive, axis=1), self.at_least)
        negative = tf.cast(background & (tf.cast(rank, entropy.dtype) < wanted[:, None]), entropy.dtype)
        chosen = positive + negative
        return tf.math.divide_no_nan(tf.reduce_sum(entropy * chosen, axis=1), tf.reduce_sum(chosen, axis=1))


class ObjectLoss(keras.losses.Loss):
    """Cross-entropy over an image's object windows alone, for a classifier that has no background class yet.

    `y_true` is int32 [B, h, w] of window labels (IGNORED, BACKGROUND, class + 1); `y_pred` logits [B, h, w, classes].
    """

    def call(self, y_true, y_pred):
        labels = tf.cast(y_true, tf.int32)
        entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(labels - 1, 0), y_pred)
        shown = tf.cast(labels > BACKGROUND, entropy.dtype)
        return tf.math.divide_no_nan(tf.reduce_sum(entropy * shown, axis=[1, 2]), tf.reduce_sum(shown, axis=[1, 2]))


def own_boxes(values: tf.Tensor, taught: tf.Tensor) -> tf.Tensor:
    """Pick from [..., 4 * classes] the four numbers of class `taught` - 1, int32 [...]; [..., 4] has but these."""
    classes = values.shape[-1] // 4
    if classes == 1:
        return values
    each = tf.reshape(values, tf.concat([tf.shape(values)[:-1], [classes, 4]], axis=0))
    return tf.gather(each, tf.maximum(taught - 1, 0), batch_dims=taught.shape.rank)


def pack_edges(edges: tf.Tensor, taught: tf.Tensor) -> tf.Tensor:
    """Join edges [..., 4] and classes taught int32 [...] as `BoxLoss` expects them: float32 [..., 5]."""
    return tf.concat([edges, tf.cast(taught, tf.float32)[..., None]], axis=-1)
