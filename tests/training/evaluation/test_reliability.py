"""The calibration error, against plain loops over the definition and on a table counted by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.evaluation.calibration import Reliability
from training.sources.record import Record


def error_by_loops(scores, right) -> float:
    error = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = [i for i, s in enumerate(scores) if low <= s < high or (s == 1.0 and number == 14)]
        if inside:
            gap = sum(scores[i] for i in inside) / len(inside) - sum(right[i] for i in inside) / len(inside)
            error += len(inside) / len(scores) * abs(gap)
    return error


# Apart from the bins' edges, on which floating point decides.
SCORES = st.integers(0, 999).map(lambda n: (n + 0.5) / 1000) | st.sampled_from((0.0, 1.0))


@given(st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=60), st.integers(0, 60))
def test_the_error_is_that_of_plain_loops_in_any_number_of_parts(pairs, cut):
    scores, right = (np.array(column) for column in zip(*pairs, strict=True))
    metric = Reliability()
    for part in (slice(cut), slice(cut, None)):
        metric.add(scores[part], right[part])
    assert dict(metric.evaluate())["calibration_error"] == pytest.approx(error_by_loops(scores, right), abs=1e-12)


def test_a_detection_is_right_once_and_difficult_objects_do_not_count():
    here, there = [0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9]
    truth = Record.of_objects(b"", "", [here, there], [0, 0], difficult=[False, True])
    answer = {
        "num_detections": np.float32(4),
        "detection_boxes": np.array([here, here, there, here, [0, 0, 0, 0]], np.float32),
        "detection_scores": np.array([0.95, 0.94, 0.9, 0.25, 0], np.float32),
        "detection_classes": np.array([1, 1, 1, 2, 0], np.float32),
    }
    metric = Reliability()
    metric.process(truth, answer)
    metric.process(Record.of_class(b"", "", 0), answer)
    figures = dict(metric.evaluate())
    # 0.95 is right, 0.94 (the same again) and 0.25 (another class) are wrong, 0.9 does not count.
    row = [figures[f"reliability/14/{kind}"] for kind in ("count", "score", "right")]
    assert row == pytest.approx([2, 0.945, 0.5])
    assert figures["reliability/03/count"] == 1 and figures["reliability/13/count"] == 0
    assert math.isnan(figures["reliability/13/score"]) and math.isnan(figures["reliability/13/right"])
    assert figures["calibration_error"] == pytest.approx((2 * 0.445 + 0.25) / 3)
    assert math.isnan(dict(Reliability().evaluate())["calibration_error"])
