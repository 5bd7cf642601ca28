"""THE inference functions: classify, localize, detect, features of one image, in the graph.

Everything else - the Python calls, evaluation, the command line, the exported signatures - calls these.
"""

from typing import NamedTuple

import tensorflow as tf

from overfeat_tf import boxes as box_ops
from overfeat_tf.merging import Merged, merge
from overfeat_tf.network import Network, apply_head
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


def classify(network: Network, image: tf.Tensor, options: InferenceOptions) -> tf.Tensor:
    """Vote over all windows, scales and flips (3.3).

    Args:
        network: The network.
        image: uint8 [H, W, 3], at least one pixel.
        options: Inference options.

    Returns:
        float32 [classes]: the logarithms of the votes, so that their softmax is the votes over their sum.
    """
    votes = vote(scan(network, image, options, with_boxes=False), network.background)
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
    probabilities, boxes = _windows(scans, network.background)
    each = tf.minimum(options.max_windows // k, tf.shape(boxes)[0])
    scores, windows = tf.math.top_k(tf.transpose(tf.gather(probabilities, best.indices, axis=1)), each)  # [k, each]
    ranks = tf.repeat(tf.range(k), each)
    merged = _merge_in_pixels(
        image, tf.gather(boxes, tf.reshape(windows, [-1])), tf.reshape(scores, [-1]), ranks, options
    )
    # Merged boxes come by falling score, so the first of a class is its best; the whole image where it has none.
    places = tf.concat([merged.boxes, tf.constant([[0.0, 0.0, 1.0, 1.0]])], axis=0)
    its_own = tf.pad(merged.classes[None] == tf.range(k)[:, None], [[0, 0], [0, 1]], constant_values=True)
    chosen = tf.gather(places, tf.argmax(its_own, axis=1))
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
    boxes = tf.concat([tf.reshape(scan.boxes, [-1, 4]) for scan in scans], axis=0)
    flat = tf.reshape(probabilities, [-1])
    scores, picked = tf.math.top_k(flat, tf.minimum(options.max_windows, tf.size(flat)))
    voting = scores >= options.min_score
    scores, picked = tf.boolean_mask(scores, voting), tf.boolean_mask(picked, voting)
    window, label = picked // network.num_classes, picked % network.num_classes
    merged = _merge_in_pixels(image, tf.gather(boxes, window), scores, label + 1, options)
    return _pad(merged, options.max_detections)


def extract_features(network: Network, image: tf.Tensor) -> tf.Tensor:
    """Compute the second full layer before its rectifier, at native size and coarse stride (3.2).

    Args:
        network: The network.
        image: uint8 [H, W, 3]; a side shorter than the window is padded below and right with the mean pixel.

    Returns:
        float32 [h, w, C].
    """
    preset = network.preset
    pixels = tf.cast(image, tf.float32)
    spare = tf.maximum(preset.window - tf.shape(pixels)[:2], 0)
    pixels = tf.pad(pixels, [[0, spare[0]], [0, spare[1]], [0, 0]], constant_values=preset.mean)
    maps = network.features(pixels[None], training=False)
    return apply_head(network.embedding, maps, preset, fine=False, training=False)[0]


def no_detections(length: int) -> Detections:
    """Give the answer for an image without objects, padded to `length`."""
    return Detections(tf.zeros([length, 4]), tf.zeros([length]), tf.zeros([length], tf.int32), tf.constant(0))


def _windows(scans: list[ScaleScan], background: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """Line up the windows of all scales: softmax scores [n, classes] without the background, boxes [n, 4]."""
    probabilities = [tf.nn.softmax(scan.logits)[..., 1 if background else 0 :] for scan in scans]
    lines = [tf.reshape(p, [-1, p.shape[-1]]) for p in probabilities]
    return tf.concat(lines, axis=0), tf.concat([tf.reshape(scan.boxes, [-1, 4]) for scan in scans], axis=0)


def _propose(scan: ScaleScan, k: int) -> tf.Tensor:
    """Give a scale's softmax scores [windows, classes], 0 for the classes that are not its top k (4.3 a)."""
    probabilities = tf.nn.softmax(scan.logits)[..., 1:]
    lines = tf.reshape(probabilities, [-1, probabilities.shape[-1]])
    peaks = tf.reduce_max(lines, axis=0)
    return lines * tf.cast(peaks >= tf.math.top_k(peaks, k).values[-1], lines.dtype)


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
