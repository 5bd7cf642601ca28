"""The inference functions: classify, localize and detect one image, in the graph.

Everything else calls these: the Python calls, evaluation, the command line and the exported signatures. Each returns
its `Stages`, so that a drawing shows the numbers behind the answer.
"""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import tensorflow as tf

from overfeat_tf import boxes as box_ops
from overfeat_tf.merge.accumulation import Merged, merge
from overfeat_tf.merge.calibration import RIVAL_IOU, RIVALS, Calibration, saturating
from overfeat_tf.network.convnet import Network
from overfeat_tf.options import InferenceOptions
from overfeat_tf.scan.dense_scan import ScaleScan, vote


class Detections(NamedTuple):
    """The boxes of one image, padded to N.

    Attributes:
        boxes: float32 [N, 4] yxyx, normalised in the image and clipped to it.
        scores: float32 [N], falling, in 0..1. `detect` gives the probability that the box is right (an IoU of at
            least 0.5 with an object of its class that no better box has found), read off the accumulated score s of
            4.3 by the model's `Calibration`. Without a calibration, or where the options ask for accumulated scores,
            it gives s / (1 + s): 0.5 is the evidence of one fully certain window, and s = score / (1 - score).
            `localize` gives the votes for the classes.
        classes: int32 [N], from 1; 0 is padding.
        count: int32 scalar, how many are not padding.
    """

    boxes: tf.Tensor
    scores: tf.Tensor
    classes: tf.Tensor
    count: tf.Tensor


class Candidates(NamedTuple):
    """The windows' boxes that take part in merging (4.3 c).

    Attributes:
        boxes: float32 [n, 4] yxyx, normalised in the image, unclipped.
        scores: float32 [n], the softmax scores of their windows.
        classes: int32 [n], from 1.
        views: int32 [n], the number of the scan that each comes from.
    """

    boxes: tf.Tensor
    scores: tf.Tensor
    classes: tf.Tensor
    views: tf.Tensor


class Stages(NamedTuple):
    """The steps that lead to an image's answer (Fig. 6).

    Attributes:
        scans: Every window's class scores and box, for each view.
        candidates: The boxes before merging; None for classification.
        merged: The merged boxes, normalised and clipped, with their accumulated scores; None likewise.
        answer: `Detections`, or the votes of `classify`.
    """

    scans: list[ScaleScan]
    candidates: Candidates | None
    merged: Merged | None
    answer: Detections | tf.Tensor


def classify(networks: Sequence[Network], scans: Sequence[list[ScaleScan]]) -> Stages:
    """Vote over all windows, scales and flips, and over the members of a committee (3.3, Table 2).

    Args:
        networks: The network, or several of the same classes, whose votes are averaged.
        scans: What `scan` gives of the image for each.

    Returns:
        The scans of the members one after the other; the answer is float32 [classes]: the logarithms of the votes, so
        that their softmax is the votes over their sum.
    """
    votes = tf.add_n([vote(s, n.background) for s, n in zip(scans, networks, strict=True)]) / len(networks)
    return Stages(list(chain(*scans)), None, None, tf.math.log(tf.maximum(votes, 1e-30)))


def localize(network: Network, scans: list[ScaleScan], size: tf.Tensor, options: InferenceOptions) -> Stages:
    """Find one box for each of the top k classes (4): windows vote for their boxes, which are merged.

    By "vote" (`options.localize_by`) the classes are those of the largest votes (3.3), and their scores the votes, in
    0..1; the candidates are their most confident windows. By "accumulated" (4.3 a-c) the candidates are all windows of
    the classes that each scale proposes, the classes are those of the merged boxes with the largest accumulated scores
    s, and their scores s / (1 + s).

    Args:
        network: The network.
        scans: What `scan` gives of the image.
        size: int32 [2], the image's height and width.
        options: Inference options.

    Returns:
        The answer is `Detections` with N = k: classes by falling score, each with its best merged box; a class without
        a usable box has the whole image.
    """
    votes = vote(scans, network.background)
    k = min(options.top_k, network.num_classes)
    best = tf.math.top_k(votes, k)
    accumulated = options.localize_by == "accumulated"
    if accumulated:
        candidates = _all_of_proposed(scans, k, network.background)
    else:
        candidates = _most_confident(scans, best.indices, max(options.window_limit // k, 1), network.background)
    merged = merge_candidates(candidates, size, options)
    # Where fewer than k classes have a usable box, those of the largest votes follow them.
    ranked = tf.unique(tf.concat([merged.classes - 1, best.indices], axis=0)).y[:k] if accumulated else best.indices
    guesses = tf.ensure_shape(ranked, [k])
    # Merged boxes come by falling score, so the first of a class is its best; the whole image where it has none.
    answers = tf.concat([merged.boxes, tf.constant([[0.0, 0.0, 1.0, 1.0]])], axis=0)
    its_own = tf.pad(merged.classes[None] == guesses[:, None] + 1, [[0, 0], [0, 1]], constant_values=True)
    chosen = tf.argmax(its_own, axis=1)
    sums = tf.gather(tf.pad(merged.scores, [[0, 1]]), chosen)
    scores = saturating(sums) if accumulated else best.values
    answer = Detections(tf.gather(answers, chosen), scores, guesses + 1, tf.constant(k))
    return Stages(scans, candidates, merged, answer)


def detect(
    network: Network,
    scans: list[ScaleScan],
    size: tf.Tensor,
    options: InferenceOptions,
    calibration: Calibration | None = None,
) -> Stages:
    """Find all objects (5): confident windows vote for their boxes, which are merged and accumulate their scores.

    A network without a background class detects too, as the paper's introduction has it: a window that shows no object
    still votes for some class, but few others agree with its box, so its score stays low beside an object's.

    Args:
        network: The network.
        scans: What `scan` gives of the image.
        size: int32 [2], the image's height and width.
        options: Inference options.
        calibration: What turns accumulated scores into probabilities, if known.

    Returns:
        The candidates are the confident windows, the answer is `Detections` with N = `options.max_detections`.
    """
    # (a) a scale proposes the top k classes by their maximum over its windows
    proposed = [_propose(scan, min(options.top_k, network.num_classes), network.background) for scan in scans]
    probabilities = tf.concat(proposed, axis=0)  # [windows, classes]
    flat = tf.reshape(probabilities, [-1])
    scores, picked = tf.math.top_k(flat, tf.minimum(options.window_limit, tf.size(flat)))
    voting = (scores >= options.min_score) & (scores > 0)  # 0 is of a class that its scale does not propose
    scores, picked = tf.boolean_mask(scores, voting), tf.boolean_mask(picked, voting)
    candidates = _candidates(scans, picked // network.num_classes, picked % network.num_classes, scores)
    merged = merge_candidates(candidates, size, options)
    return Stages(scans, candidates, merged, best_detections(merged, options, calibration))


def no_detections(length: int) -> Detections:
    """Return the answer for an image without objects, padded to `length`."""
    return Detections(tf.zeros([length, 4]), tf.zeros([length]), tf.zeros([length], tf.int32), tf.constant(0))


def window_scores(scan: ScaleScan, background: bool) -> tf.Tensor:
    """Return a scale's softmax scores [windows, classes], row by row, without the background's."""
    probabilities = tf.nn.softmax(scan.logits)[..., 1 if background else 0 :]
    return tf.reshape(probabilities, [-1, probabilities.shape[-1]])


def _propose(scan: ScaleScan, k: int, background: bool) -> tf.Tensor:
    """Return a scale's softmax scores [windows, classes], 0 for the classes that are not its top k (4.3 a)."""
    lines = window_scores(scan, background)
    peaks = tf.reduce_max(lines, axis=0)
    return lines * tf.cast(peaks >= tf.math.top_k(peaks, k).values[-1], lines.dtype)


def _most_confident(scans: list[ScaleScan], classes: tf.Tensor, count: int, background: bool) -> Candidates:
    """Return the boxes of the `count` windows with the highest scores for each of classes [k] from 0."""
    lines = tf.concat([window_scores(one, background) for one in scans], axis=0)
    each = tf.minimum(count, tf.shape(lines)[0])
    scores, windows = tf.math.top_k(tf.transpose(tf.gather(lines, classes, axis=1)), each)  # [k, each]
    return _candidates(scans, tf.reshape(windows, [-1]), tf.repeat(classes, each), tf.reshape(scores, [-1]))


def _all_of_proposed(scans: list[ScaleScan], k: int, background: bool) -> Candidates:
    """Return the boxes of all windows of each scale for the scale's top k classes (4.3 a-c): k boxes a window."""
    scores, windows, labels = [], [], []
    before = tf.constant(0)
    for one in scans:
        lines = window_scores(one, background)
        count = tf.shape(lines)[0]
        top = tf.math.top_k(tf.reduce_max(lines, axis=0), k).indices
        scores.append(tf.reshape(tf.gather(lines, top, axis=1), [-1]))
        windows.append(before + tf.repeat(tf.range(count), k))
        labels.append(tf.tile(top, [count]))
        before += count
    return _candidates(scans, tf.concat(windows, axis=0), tf.concat(labels, axis=0), tf.concat(scores, axis=0))


def _candidates(scans: list[ScaleScan], windows: tf.Tensor, labels: tf.Tensor, scores: tf.Tensor) -> Candidates:
    """Look up the boxes of windows [n], numbered through all scans, for labels [n] from 0."""
    grids = [scan.boxes for scan in scans if scan.boxes is not None]
    lines = [tf.reshape(grid, [-1, *grid.shape[2:]]) for grid in grids]
    views = tf.repeat(tf.range(len(lines)), tf.stack([tf.shape(line)[0] for line in lines]))
    boxes = _boxes_of(tf.concat(lines, axis=0), windows, labels)
    return Candidates(boxes, scores, labels + 1, tf.gather(views, windows))


def _boxes_of(boxes: tf.Tensor, windows: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Pick windows' boxes [n, 4]: the class's own where there is one for each (PCR), else the only one (SCR; 4.3)."""
    own = labels if boxes.shape[1] > 1 else tf.zeros_like(labels)
    return tf.gather_nd(boxes, tf.stack([windows, own], axis=1))


def merge_candidates(candidates: Candidates, size: tf.Tensor, options: InferenceOptions) -> Merged:
    """Merge candidates in the aspect of their image of int32 (height, width); the answer is normalised and clipped."""
    size = tf.cast(size, tf.float32)
    sides = tf.concat([size, size], axis=0)
    merged = merge(
        box_ops.clip(candidates.boxes) * sides,
        candidates.scores,
        candidates.classes,
        options.merge_threshold,
        options.merge_average,
        options.merge_across_classes,
    )
    return merged._replace(boxes=box_ops.clip(merged.boxes / sides))


def best_detections(merged: Merged, options: InferenceOptions, calibration: Calibration | None) -> Detections:
    """Score the merged boxes, take the best, and pad to `options.max_detections`.

    Scores are probabilities where the map is known. They do not depend on how many boxes are answered.
    """
    length = options.max_detections
    merged = Merged(*(values[: max(length, RIVALS)] for values in merged))
    if calibration is None or options.scores == "accumulated":
        scores = saturating(merged.scores)
    else:
        scores = calibration(merged.scores, merged.boxes)
    if options.one_box_per_object:
        order = tf.image.non_max_suppression(merged.boxes, scores, length, RIVAL_IOU)
    else:
        order = tf.argsort(scores, direction="DESCENDING", stable=True)[:length]
    count = tf.size(order)

    def fill(values: tf.Tensor) -> tf.Tensor:
        rest = [[0, 0]] * (values.shape.rank - 1)
        best = tf.gather(values, order)
        return tf.ensure_shape(tf.pad(best, [[0, length - count], *rest]), [length, *values.shape[1:]])

    return Detections(fill(merged.boxes), fill(scores), fill(merged.classes), count)
