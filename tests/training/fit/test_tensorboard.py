"""Precision-recall counts by hand, settings as the table takes them, and a profile's steps."""

import numpy as np
import pytest

from training.evaluation.recall import PrecisionRecall
from training.fit.tensorboard import ProfiledSteps, flatten
from training.sources.record import Record


def answer(boxes, scores, classes) -> dict:
    return {
        "num_detections": np.array(len(boxes), float),
        "detection_boxes": np.array(boxes, float).reshape(-1, 4),
        "detection_scores": np.array(scores, float),
        "detection_classes": np.array(classes, float),
    }


HERE, THERE, ELSEWHERE = [0, 0, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9], [0, 0.6, 0.2, 0.8]


def test_each_object_is_found_once_and_wrong_classes_count_as_wrong():
    curves = PrecisionRecall(("a", "b", "c"))
    record = Record.of_objects(b"", "", [HERE, THERE], [0, 1])
    curves.process(record, answer([HERE, HERE, THERE, THERE], [0.9, 0.8, 0.6, 0.4], [1, 1, 1, 2]))
    found = dict(curves.evaluate())
    assert set(found) == {"all", "a", "b"}  # c has no object
    true, false, _, missed, precision, recall = found["all"]
    for threshold, expected in (
        (0.95, (0, 0, 2)),
        (0.85, (1, 0, 1)),
        (0.7, (1, 1, 1)),
        (0.5, (1, 2, 1)),
        (0, (2, 2, 0)),
    ):
        at = round(threshold * 100)
        assert (true[at], false[at], missed[at]) == expected
        assert precision[at] == pytest.approx(expected[0] / max(sum(expected[:2]), 1))
        assert recall[at] == pytest.approx(expected[0] / 2)


def test_difficult_objects_and_images_without_boxes_count_for_nothing():
    curves = PrecisionRecall(("a",))
    curves.process(Record.of_objects(b"", "", [HERE], [0], difficult=[True]), answer([HERE], [0.9], [1]))
    curves.process(Record.of_class(b"", "", 0), answer([ELSEWHERE], [0.9], [1]))
    curves.process(Record.of_objects(b"", "", [], []), answer([THERE], [0.3], [1]))
    (name, (true, false, _, missed, _, _)), *rest = curves.evaluate()
    assert name == "all" and not rest
    assert not true.any() and not missed.any() and false[0] == 1 and false[50] == 0


def test_settings_are_flat_and_of_kinds_that_the_table_has():
    settings = {"a": {"rate": 0.1, "drops": (1, 2)}, "data": None, "fine": True}
    assert flatten(settings) == {"a.rate": 0.1, "a.drops": "(1, 2)", "data": "None", "fine": True}


def test_a_profile_tells_steps_apart(tmp_path):
    marks = ProfiledSteps(tmp_path, 2)
    for step in range(4):
        marks.on_train_batch_begin(step)
        marks.on_train_batch_end(step)
    (trace,) = tmp_path.rglob("*.xplane.pb")
    assert b"step_num" in trace.read_bytes()
