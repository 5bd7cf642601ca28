"""The final classification (3.3 i-iii) against plain numpy."""

import numpy as np
import pytest
import tensorflow as tf

from overfeat_tf.scan.dense_scan import ScaleScan, vote


def random_scans(*sizes):
    rng = np.random.default_rng(0)
    return [one_scan(rng.normal(0, 3, (*size, 4))) for size in sizes]


def one_scan(logits):
    return ScaleScan(tf.constant(logits, tf.float32), None, tf.zeros([*np.shape(logits)[:2], 4]))


@pytest.mark.parametrize("background", [False, True])
def test_votes_are_the_mean_over_scales_of_the_maximum_over_windows(background):
    scans = random_scans((3, 3), (6, 9), (1, 1), (9, 15))
    total = np.zeros(4)
    for scan in scans:
        best = np.zeros(4)
        for logits in scan.logits.numpy().reshape(-1, 4).astype(np.float64):
            best = np.maximum(best, np.exp(logits) / np.exp(logits).sum())
        total += best
    votes = vote(scans, background)
    np.testing.assert_allclose(votes, (total / 4)[1:] if background else total / 4, rtol=1e-5)


def test_one_sure_window_decides_its_scale():
    logits = np.zeros((5, 5, 3), np.float32)
    logits[4, 0, 2] = 50.0
    # The maximum is taken of softmax scores: a window's common constant has no say.
    logits[1, 1] = 99.0
    votes = vote([one_scan(logits)], background=False)
    np.testing.assert_allclose(votes, [1 / 3, 1 / 3, 1], rtol=1e-5)
