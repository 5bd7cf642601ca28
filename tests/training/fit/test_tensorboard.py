"""Precision-recall counts by hand, validation's figures and pictures, and a profile's steps."""

from contextlib import nullcontext
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_source import SmallSource, picture

import overfeat_tf as of
from training.evaluation.recall import PrecisionRecall
from training.fit.tensorboard import ProfiledSteps, Validation, Weights
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
    curves.process(Record.of_objects(b"", "", [], []), answer([THERE], [0.3], [1]))
    (name, (true, false, _, missed, _, _)), *rest = curves.evaluate()
    assert name == "all" and not rest
    assert not true.any() and not missed.any() and false[0] == 1 and false[50] == 0


def test_a_profile_tells_steps_apart(tmp_path):
    marks = ProfiledSteps(tmp_path, 2)
    for step in range(4):
        marks.on_train_batch_begin(step)
        marks.on_train_batch_end(step)
    (trace,) = tmp_path.rglob("*.xplane.pb")
    assert b"step_num" in trace.read_bytes()


def test_a_profile_ends_with_a_stage_that_is_shorter(tmp_path):
    for folder in ("one", "two"):
        marks = ProfiledSteps(tmp_path / folder, 9)
        for step in range(6):
            marks.on_train_batch_begin(step)
            marks.on_train_batch_end(step)
        marks.on_train_end()
        assert len([*(tmp_path / folder).rglob("*.xplane.pb")]) == 1


def test_weights_are_shown_of_a_backbone_that_begins_with_statistics(tmp_path):
    pixels = keras.Input((None, None, 3))
    x = keras.layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 1.0, 1.0])(pixels)
    x = keras.layers.Conv2D(4, 3, 16, "same", activation="relu")(keras.layers.BatchNormalization()(x))
    keras.Model(pixels, x).save(tmp_path / "small.keras")
    model = of.Model(of.build(str(tmp_path / "small.keras"), 2), ("a", "b"))
    boards = Weights(tf.summary.create_file_writer(str(tmp_path / "logs")), model)
    boards.set_model(model.network.classifier)
    boards.on_epoch_end(0)
    (file,) = (tmp_path / "logs").iterdir()
    assert b"first_layer" in file.read_bytes()


@pytest.mark.parametrize(("stage", "figure"), [("detection", "val_map50"), ("localization", "val_localization1_error")])
def test_an_image_that_is_cut_off_is_scored_and_not_drawn(stage, figure, tmp_path):
    def answers(images):
        rows = [{**answer([HERE], [0.9], [1]), "detection_class_entities": np.array([b"a"], object)} for _ in images]
        stacked = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        statuses = np.array([b"damaged" if image == cut else b"" for image in images], object)
        return {**stacked, "status": statuses, "image_size": np.full((len(images), 2), 100)}

    whole = np.random.default_rng(0).integers(0, 255, (100, 100, 3), np.uint8)
    whole = tf.io.encode_jpeg(whole).numpy()
    cut = whole[: len(whole) // 2]
    records = [Record.of_objects(data, name, [HERE], [0]) for name, data in (("cut", cut), ("whole", whole))]
    source = SmallSource({"val": records}, class_names=("a",))
    model = SimpleNamespace(detect=answers, localize=answers, concurrency=1, tasks=("localization",))
    writer = tf.summary.create_file_writer(str(tmp_path))
    logs: dict = {}
    Validation(writer, stage, model, source, "val", 2, nullcontext).on_epoch_end(0, logs)
    assert 0.0 <= logs[figure] <= 1.0
    (file,) = tmp_path.iterdir()
    assert b"val/0" in file.read_bytes() and b"val/1" not in file.read_bytes()


def test_images_without_objects_give_no_figures_and_end_no_run(tmp_path, caplog):
    source = SmallSource({"val": [Record.of_objects(picture(9, 9), "none", [], [])]}, class_names=("a",))

    def answers(images):
        found = {**answer([], [], []), "status": np.array(b"", object), "image_size": np.array([9, 9])}
        return {key: values[None] for key, values in found.items()}

    model = SimpleNamespace(detect=answers, concurrency=1)
    writer, logs = tf.summary.create_file_writer(str(tmp_path)), {}
    Validation(writer, "detection", model, source, "val", 1, nullcontext).on_epoch_end(3, logs)
    assert not logs and "no figures of detection in epoch 4: " in caplog.text
