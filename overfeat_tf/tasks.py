"""THE inference functions: classify, localize, detect one image, in the graph.

Everything else - the Python calls, evaluation, the command line, the exported signatures - calls these.
"""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from overfeat_tf import boxes as box_ops
from overfeat_tf.merging import Merged, merge
from overfeat_tf.network import Network
from overfeat_tf.options import InferenceOptions
from overfeat_tf.scan import ScaleScan, scan
from overfeat_tf.voting import vote


class Detections(NamedTuple):
    """The boxes of one image, padded to N.

    Attributes:
        boxes: float32 [N, 4] yxyx, normalised in the image and clipped to it.
        scores: float32 [N], falling. The accumulated score s of 4.3, given as s / (1 + s), so that it lies in
            0..1 and never saturates: 0.5 is the evidence of one fully certain window.
        classes: int32 [N], from 1; 0 is padding.
        count: int32 scalar, how many are not padding.
    """

    boxes: tf.Tensor
    scores: tf.Tensor
    classes: tf.Tensor
    count: tf.Tensor


def classify(networks: Sequence[Network], image: tf.Tensor, options: InferenceOptions) -> tf.Tensor:
    """Vote over all windows, scales and flips, and over the members of a committee (3.3, Table 2).

    Args:
        networks: The network, or several of the same classes, whose votes are averaged.
        image: uint8 [H, W, 3], at least one pixel.
        options: Inference options.

    Returns:
        float32 [classes]: the logarithms of the votes, so that their softmax is the votes over their sum.
    """
    scans = [scan(network, image, options, with_boxes=False) for network in networks]
    votes = tf.add_n([vote(s, n.background) for s, n in zip(scans, networks, strict=True)]) / len(networks)
    return tf.math.log(tf.maximum(votes, 1e-30))


def localize(network: Network, image: tf.Tensor, options: InferenceOptions) -> Detections:
    """Find one box for each of the top k classes (4): windows vote for their boxes, which are merged.

    Returns:
        `Detections` with N = k: classes by falling vote, each with its best merged box. Their scores are the
        classes' votes, in 0..1, since the classes are the guesses here.
    """
    scans = scan(network, image, options)
    votes = vote(scans, network.background)
    k = min(options.top_k, network.num_classes)
    best = tf.math.top_k(votes, k)
    lines = tf.concat([_probabilities(s, network.background) for s in scans], axis=0)
    boxes = _window_boxes(scans)
    each = tf.minimum(options.max_windows // k, tf.shape(boxes)[0])
    scores, windows = tf.math.top_k(tf.transpose(tf.gather(lines, best.indices, axis=1)), each)  # [k, each]
    places = _boxes_of(boxes, tf.reshape(windows, [-1]), tf.repeat(best.indices, each))
    ranks = tf.repeat(tf.range(k), each)
    merged = _merge_in_pixels(image, places, tf.reshape(scores, [-1]), ranks, options)
    # Merged boxes come by falling score, so the first of a class is its best; the whole image where it has none.
    answers = tf.concat([merged.boxes, tf.constant([[0.0, 0.0, 1.0, 1.0]])], axis=0)
    its_own = tf.pad(merged.classes[None] == tf.range(k)[:, None], [[0, 0], [0, 1]], constant_values=True)
    chosen = tf.gather(answers, tf.argmax(its_own, axis=1))
    return Detections(chosen, best.values, best.indices + 1, tf.constant(k))


def detect(network: Network, image: tf.Tensor, options: InferenceOptions) -> Detections:
    """Find all objects (5): confident windows vote for their boxes, which are merged and accumulate their scores.

    Returns:
        `Detections` with N = `options.max_detections`.

    Raises:
        ValueError: the network has no background class: it was not trained to detect.
    """
    if not network.background:
        raise ValueError("expected a network with a background class; got one that was not trained for detection")
    scans = scan(network, image, options)
    # (a) a scale proposes the top k classes by their maximum over its windows
    proposed = [_propose(scan, min(options.top_k, network.num_classes)) for scan in scans]
    probabilities = tf.concat(proposed, axis=0)  # [windows, classes]
    boxes = _window_boxes(scans)
    flat = tf.reshape(probabilities, [-1])
    scores, picked = tf.math.top_k(flat, tf.minimum(options.max_windows, tf.size(flat)))
    voting = scores >= options.min_score
    scores, picked = tf.boolean_mask(scores, voting), tf.boolean_mask(picked, voting)
    window, label = picked // network.num_classes, picked % network.num_classes
    merged = _merge_in_pixels(image, _boxes_of(boxes, window, label), scores, label + 1, options)
    return _pad(merged, options.max_detections)


def no_detections(length: int) -> Detections:
    """Give the answer for an image without objects, padded to `length`."""
    return Detections(tf.zeros([length, 4]), tf.zeros([length]), tf.zeros([length], tf.int32), tf.constant(0))


def _probabilities(scan: ScaleScan, background: bool) -> tf.Tensor:
    """Give a scale's softmax scores [windows, classes] without the background's."""
    probabilities = tf.nn.softmax(scan.logits)[..., 1 if background else 0 :]
    return tf.reshape(probabilities, [-1, probabilities.shape[-1]])


def _propose(scan: ScaleScan, k: int) -> tf.Tensor:
    """Give a scale's softmax scores [windows, classes], 0 for the classes that are not its top k (4.3 a)."""
    lines = _probabilities(scan, background=True)
    peaks = tf.reduce_max(lines, axis=0)
    return lines * tf.cast(peaks >= tf.math.top_k(peaks, k).values[-1], lines.dtype)


def _window_boxes(scans: list[ScaleScan]) -> tf.Tensor:
    """Line up the boxes of all windows of all scales, [windows, R, 4]."""
    boxes = [scan.boxes for scan in scans if scan.boxes is not None]
    return tf.concat([tf.reshape(each, [-1, *each.shape[2:]]) for each in boxes], axis=0)


def _boxes_of(boxes: tf.Tensor, windows: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Pick windows' boxes [n, 4]: the class's own where there is one for each (PCR), else the only one (SCR; 4.3)."""
    own = labels if boxes.shape[1] > 1 else tf.zeros_like(labels)
    return tf.gather_nd(boxes, tf.stack([windows, own], axis=1))


def _merge_in_pixels(image, boxes, scores, classes, options: InferenceOptions) -> Merged:
    """Merge normalised boxes in the image's own aspect; the answer is normalised and clipped again."""
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    sides = tf.concat([size, size], axis=0)
    merged = merge(box_ops.clip(boxes) * sides, scores, classes, options.merge_threshold)
    return merged._replace(boxes=box_ops.clip(merged.boxes / sides))


def _pad(merged: Merged, length: int) -> Detections:
    count = tf.minimum(tf.shape(merged.scores)[0], length)

    def fill(values: tf.Tensor) -> tf.Tensor:
        rest = [[0, 0]] * (values.shape.rank - 1)
        return tf.ensure_shape(tf.pad(values[:length], [[0, length - count], *rest]), [length, *values.shape[1:]])

    scores = merged.scores / (1.0 + merged.scores)
    return Detections(fill(merged.boxes), fill(scores), fill(merged.classes), count)
