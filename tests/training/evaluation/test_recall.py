"""Recall by size and shape, and what a user sees at the display threshold, on images counted by hand."""

import math

import numpy as np
import pytest
from answers import answer

from training.evaluation.recall import DetectionRecall
from training.sources.record import Record


def figures(pairs, threshold=None) -> dict[str, float]:
    metric = DetectionRecall(threshold)
    for truth, found in pairs:
        metric.process(truth, found)
    return dict(metric.evaluate())


# In pixels of a 100 x 200 image: 20 x 20, 80 x 150 (tall below), and 10 x 60.
DOT, SLAB, BAR = [0.1, 0.1, 0.3, 0.2], [0.1, 0.2, 0.9, 0.95], [0.0, 0.3, 0.1, 0.6]
ELSEWHERE = [0.7, 0.0, 0.9, 0.1]


def test_recall_is_counted_in_each_group():
    truth = Record.of_objects(b"", "", [DOT, SLAB, BAR, ELSEWHERE], [0, 1, 0, 1], difficult=[False] * 3 + [True])
    found = figures([(truth, answer([DOT, SLAB, ELSEWHERE], [0, 0, 1], [0.9, 0.8, 0.7]))])
    expected = {  # objects, recall
        "area/small": (2, 0.5),
        "area/medium": (0, math.nan),
        "area/large": (1, 0.0),  # found as another class
        "share/below_1_8": (1, 1.0),  # 0.1
        "share/1_8_to_1_3": (1, 0.0),  # 0.3
        "share/1_3_to_2_3": (0, math.nan),
        "share/above_2_3": (1, 0.0),  # 0.75
        "aspect/below_1.5": (1, 1.0),
        "aspect/1.5_to_3": (1, 0.0),  # 1.875
        "aspect/above_3": (1, 0.0),  # 6
    }
    for name, (objects, recall) in expected.items():
        assert found[f"objects/{name}"] == objects, name
        assert found[f"recall/{name}"] == pytest.approx(recall, nan_ok=True), name
    assert found["objects"] == 3 and found["recall"] == pytest.approx(1 / 3)
    assert not any("display" in name or "duplicates" in name for name in found)


def test_what_is_shown_is_counted_and_second_boxes_of_what_was_found_are_duplicates():
    truth = Record.of_objects(b"", "", [DOT, SLAB, ELSEWHERE], [0, 1, 0], difficult=[False, False, True])
    above, below = [0.04, 0.1, 0.24, 0.2], [0.16, 0.1, 0.36, 0.2]  # an IoU of 0.54 with DOT, of 0.25 with each other
    found = answer(
        [SLAB, above, ELSEWHERE, DOT, DOT, below, BAR, SLAB, BAR],
        [0, 0, 0, 0, 1, 1, 0, 1, 0],
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.5, 0.5, 0.4, 0.3],
    )
    # Shown from 0.5: SLAB as another class, DOT by the box above it, the difficult one, DOT again below, BAR; but not
    # the two boxes on DOT that overlap a better one, nor, from 0.4, SLAB as what it is.
    empty = Record.of_objects(b"", "", [], []), answer([], [], [])
    for threshold in (0.5, 0.4):
        got = figures([(truth, found), empty], threshold)
        assert got["displayed_per_image"] == 2 and got["precision_displayed"] == pytest.approx(1 / 4)
        assert got["recall_displayed"] == 0.5 and got["recall"] == 1
        assert got["recall_displayed/area/small"] == 1 and got["recall_displayed/area/large"] == 0
        assert got["f1_displayed"] == pytest.approx(2 / (1 / 0.25 + 1 / 0.5))
        assert got["duplicates"] == 1 and got["duplicates_per_image"] == 0.5


def test_only_a_hundred_detections_of_an_image_count():
    corners = np.stack(np.meshgrid(np.arange(10), np.arange(10)), axis=-1).reshape(100, 2) / 40 + [0.4, 0.5]
    boxes = np.concatenate([corners, corners + 0.02], axis=1)  # side by side
    truth = Record.of_objects(b"", "", [DOT], [0])
    for before, recall in ((99, 1), (100, 0)):
        found = answer([*boxes[:before], DOT], [0] * (before + 1), np.linspace(0.9, 0.6, before + 1))
        got = figures([(truth, found)], 0.5)
        assert got["recall"] == got["recall_displayed"] == recall
        assert got["displayed_per_image"] == 100
