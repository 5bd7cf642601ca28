"""From dense scores to one class vector: spatial maximum, then the mean over scales and flips (3.3)."""

import tensorflow as tf

from overfeat_tf.scan.dense_scan import ScaleScan


def vote(scans: list[ScaleScan], background: bool) -> tf.Tensor:
    """Vote over all windows: (i) each class's maximum over a scale's windows, (ii) the mean over scales and flips.

    The votes are softmax scores: scores before softmax are only defined up to a constant at each window, so their
    maximum over windows would mean nothing.

    Args:
        scans: What `scan` gives.
        background: Whether class 0 is the background, which has no vote.

    Returns:
        float32 [classes], each in 0..1; they need not sum to 1.
    """
    maxima = [tf.reduce_max(tf.nn.softmax(scan.logits), axis=[0, 1]) for scan in scans]
    votes = tf.reduce_mean(tf.stack(maxima), axis=0)
    return votes[1:] if background else votes
