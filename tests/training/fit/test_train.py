"""Runs of a few steps on a few digits: what they leave, what they move, and how they are taken up again."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_run import EPOCHS, RECIPE, SCHEDULE, Epochs
from small_source import few_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

from overfeat_tf.merge.calibration import Calibration
from overfeat_tf.models.loading import load, read_config
from overfeat_tf.models.model import TASKS
from training.fit import train as module
from training.fit.callbacks import FiniteLoss
from training.fit.train import train
from training.sources.record import Record

PARTS = ("features", "classifier", "regressor")


def weights(network) -> dict[str, list[np.ndarray]]:
    return {part: [np.array(w) for w in getattr(network, part).get_weights()] for part in PARTS}


def state(model) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Read a compiled model's weights, and its optimizer's counters and momenta."""
    return model.get_weights(), [np.asarray(variable.numpy()) for variable in model.optimizer.variables]


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def source():
    return few_digits(8, 2)


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory):
    """A run of all stages, broken off after the first epoch of detection, and finished."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    before, after, fit = {}, {}, module._fit
    broken, taken_up, calibrations = {}, {}, []

    class Breaking(Epochs):
        seen: ClassVar = {}

        def on_train_begin(self, logs=None):
            if self._stage in broken:
                taken_up[self._stage] = state(self.model)

        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            if self._stage == "detection" and self._stage not in broken:
                broken[self._stage] = state(self.model)
                raise KeyboardInterrupt

    def watched(stage, model, *rest):
        before.setdefault(stage, weights(model.network))
        fitted = fit(stage, model, *rest)
        after[stage] = weights(model.network)
        return fitted

    def calibrated(model, source, split, seed):  # after so few steps there is nothing to fit one on
        calibrations.append((split, seed, model.tasks))
        return Calibration(threshold=0.3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_fit", watched)
        patch.setattr(module, "EpochLines", Breaking)
        patch.setattr(module, "calibrate", calibrated)
        with pytest.raises(KeyboardInterrupt):
            train(RECIPE, source, run)
        model = train(RECIPE, source, run).model
    moments = {"before": before, "after": after, "broken": broken, "taken_up": taken_up}
    moments["calibrations"] = calibrations
    return SimpleNamespace(run=run, model=model, epochs=Breaking.seen, **moments)


def test_the_finished_detector_is_calibrated_once_and_the_run_keeps_it(finished):
    assert finished.calibrations == [("val", RECIPE.seed, tuple(TASKS))]
    assert load(finished.run).display_threshold == finished.model.display_threshold == 0.3


# --- What is left ----------------------------------------------------------------------------------------------------


def test_a_run_leaves_its_configuration(finished):
    config = read_config(finished.run)
    assert config["model"]["tasks"] == list(TASKS) and config["model"]["background"] is True
    assert config["model"]["labels"] == list("0123456789") and config["model"]["options"]["scales"] == [1, 2]
    assert config["training"]["data"] == "small" and config["training"]["seed"] == RECIPE.seed
    assert config["training"]["detection"]["learning_rate"] == SCHEDULE.learning_rate
    assert set(config["training"]["versions"]) == {"tensorflow", "keras"}


def test_a_run_leaves_the_weights_of_the_model_returned(finished, source):
    loaded = load(finished.run)
    assert loaded.tasks == finished.model.tasks == TASKS
    for part, values in weights(loaded.network).items():
        assert same(values, weights(finished.model.network)[part]) and same(values, finished.after["detection"][part])
    images = [record.image_bytes for record in source.records("val")]
    assert loaded.detect(images)["detection_boxes"].shape == (2, RECIPE.inference.max_detections, 4)


@pytest.mark.parametrize("stage", TASKS)
def test_a_run_leaves_checkpoints(finished, stage):
    folder = finished.run / "checkpoints" / stage
    assert tf.train.latest_checkpoint(str(folder)) == str(folder / f"ckpt-{SCHEDULE.steps}")
    step, *_ = json.loads(tf.train.load_variable(str(folder), "position/.ATTRIBUTES/py_state"))
    assert step == SCHEDULE.steps


def read_events(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return events


def logged(folder: Path) -> dict[str, list]:
    """Read the tensors of a folder of events by tag."""
    events = read_events(folder)
    return {tag: [tf.make_ndarray(e.tensor_proto) for e in events.Tensors(tag)] for tag in events.Tags()["tensors"]}


@pytest.mark.parametrize("stage", TASKS)
def test_a_run_leaves_logs_for_tensorboard(finished, stage):
    logs = logged(finished.run / "logs" / stage / "train")
    losses = [figures["loss"] for figures in finished.epochs[stage]]
    np.testing.assert_allclose(logs["epoch_loss"], losses, rtol=1e-5)
    # Keras reads the rate as an epoch has ended: it is the next step's, and the first epoch's end is where it drops.
    np.testing.assert_allclose(logs["epoch_learning_rate"], [SCHEDULE.learning_rate * SCHEDULE.factor] * 2, rtol=1e-5)


def test_detection_is_validated_by_map(finished):
    logs = logged(finished.run / "logs" / "detection" / "validation")
    assert len(logs["epoch_map50"]) == len(logs["epoch_map"]) == EPOCHS
    assert all("val_map50" in figures for figures in finished.epochs["detection"])


def test_localization_is_validated_by_its_errors(finished):
    logs = logged(finished.run / "logs" / "localization" / "validation")
    for name in ("localization1_error", "localization5_error", "top1_error", "top5_error"):
        assert len(logs[f"epoch_{name}"]) == EPOCHS and 0 <= logs[f"epoch_{name}"][-1] <= 1


SHOWN = {"classification": ("top1", "top5"), "localization": (), "detection": ("scores_loss", "boxes_loss")}


@pytest.mark.parametrize("stage", TASKS)
def test_losses_by_part_and_metrics_go_on_where_a_broken_run_was(finished, stage):
    events = read_events(finished.run / "logs" / stage / "train")
    for name in ("images_per_second", "step_loss", *(f"step_{name}" for name in SHOWN[stage])):
        assert [event.step for event in events.Tensors(name)] == list(range(1, SCHEDULE.steps + 1)), name
    logs = logged(finished.run / "logs" / stage / "train")
    assert {f"epoch_{name}" for name in SHOWN[stage]} <= set(logs)
    # A point is of its own step: those of an epoch have the epoch's mean.
    of_epochs = np.reshape(logs["step_loss"], [EPOCHS, -1]).mean(axis=1)
    np.testing.assert_allclose(of_epochs, logs["epoch_loss"], rtol=1e-4)


@pytest.mark.parametrize("stage", TASKS)
def test_boards_show_pictures_filters_histograms_speed_and_settings(finished, stage):
    shown, logs = (logged(finished.run / "logs" / stage / name) for name in ("validation", "train"))
    for name, pictures in (("val/0", shown), ("val/1", shown), ("first_layer", logs)):
        width, height, *encoded = pictures[name][-1]
        assert tf.io.decode_image(encoded[0]).shape == (int(height), int(width), 3)
    assert logs["images_per_second"][-1] > 0
    assert {path.name for path in (finished.run / "logs" / stage).iterdir()} == {"train", "validation"}
    features = [tag for tag in logs if tag.startswith("weights/") and "conv1" in tag]
    assert len(features) == (0 if stage == "localization" else 2)  # what does not learn is not shown
    counts = logs[next(tag for tag in logs if tag.startswith("weights/"))][-1][:, 2]
    assert counts.sum() > 0
    graph = read_events(finished.run / "logs" / stage / "train").Graph()
    assert any("conv1" in node.name for node in graph.node)


def test_a_training_is_one_row_of_hyperparameters_by_their_keys(finished):
    tag = "_hparams_/session_start_info"
    began = parse_session_start_info_plugin_data(
        read_events(finished.run / "logs").SummaryMetadata(tag).plugin_data.content
    )
    assert began.group_name == str(finished.run)
    assert began.hparams["detection.learning_rate"].number_value == SCHEDULE.learning_rate
    assert began.hparams["negatives"].string_value == "offending" and began.hparams["fine"].bool_value is True
    assert began.hparams["detection.drops"].string_value == "(0.5,)" and began.hparams["ema"].string_value == "None"
    for stage in TASKS:
        assert tag not in logged(finished.run / "logs" / stage / "train")


def test_boards_show_precision_and_recall(finished):
    logs = logged(finished.run / "logs" / "detection" / "validation")
    true, false, _, missed, precision, recall = logs["precision_recall/all/pr_curves"][-1]
    assert len(logs["precision_recall/all/pr_curves"]) == EPOCHS and len(recall) == 101
    np.testing.assert_allclose(precision, true / np.maximum(true + false, 1), atol=1e-6)
    np.testing.assert_allclose(recall, true / (true + missed), atol=1e-6)


# --- What moves ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stage, moving",
    [("classification", {"features", "classifier"}), ("localization", {"regressor"}), ("detection", set(PARTS))],
)
def test_a_stage_moves_its_own_parts_and_no_other_by_a_bit(finished, stage, moving):
    before, after = finished.before[stage], finished.after[stage]
    assert {part for part in PARTS if not same(before[part], after[part])} == moving


def test_each_stage_starts_from_what_the_one_before_has_learnt(finished):
    assert all(same(finished.after["classification"][part], finished.before["localization"][part]) for part in PARTS)
    learnt, start = finished.after["localization"], finished.before["detection"]
    assert same(learnt["features"], start["features"]) and same(learnt["regressor"], start["regressor"])
    *hidden, kernel, bias = start["classifier"]
    *learnt_hidden, learnt_kernel, learnt_bias = learnt["classifier"]
    assert same(hidden, learnt_hidden)
    np.testing.assert_array_equal(kernel[..., 1:], learnt_kernel)
    np.testing.assert_array_equal(bias[1:], learnt_bias)
    assert not kernel[..., 0].any() and bias[0] == 0


# --- Taking up a run -------------------------------------------------------------------------------------------------


def test_a_broken_run_goes_on_where_it_was(finished):
    for kept, found in zip(finished.broken["detection"], finished.taken_up["detection"], strict=True):
        assert same(kept, found) and any(np.any(values) for values in kept)
    steps = finished.taken_up["detection"][1][0]  # the optimizer's first variable
    assert int(steps) == SCHEDULE.steps // EPOCHS


def test_every_epoch_is_trained_once(finished):
    assert {stage: [e["epoch"] for e in epochs] for stage, epochs in finished.epochs.items()} == {
        stage: list(range(EPOCHS)) for stage in TASKS
    }


def test_a_finished_run_is_not_trained_again(finished, source, monkeypatch):
    monkeypatch.setattr(module, "_fit", lambda *_: pytest.fail("trained again"))
    again = train(RECIPE, source, finished.run).model
    assert all(same(values, finished.after["detection"][part]) for part, values in weights(again.network).items())


def test_classification_after_detection_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_fit", lambda *_: ({}, {}))
    monkeypatch.setattr(module, "calibrate", lambda *_, **__: None)
    train(RECIPE, source, tmp_path, ["detection"])
    with pytest.raises(ValueError, match=r"^expected .* to be fitted for classification before detection: [^\n]*$"):
        train(RECIPE, source, tmp_path, ["classification"])


def test_an_unknown_stage_is_refused_before_anything_is_made(source, tmp_path):
    message = "expected stages of classification, localization, detection; got 'detect'; did you mean 'detection'\\?"
    with pytest.raises(ValueError, match=f"^{message}$"):
        train(RECIPE, source, tmp_path / "run", ["classification", "detect"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"side": 35, "fine": True}, "expected side to be at least 36 pixels for 'tiny'; got 35"),
        ({"side": 31, "fine": False}, "expected side to be at least 32 pixels for 'tiny'; got 31"),
        ({"inference": replace(RECIPE.inference, scales=(1, 99))}, "expected scales of 'tiny' from 1 to"),
        ({"preset": "tine"}, "expected a preset, a model of .*; did you mean 'tiny'?"),
    ],
)
def test_sizes_that_the_network_cannot_take_are_refused_before_anything_is_made(source, tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        train(replace(RECIPE, **changes), source, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_layer_that_is_not_there_is_refused_before_the_run_keeps_its_recipe(source, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_fit", lambda *_: ({}, {}))
    with pytest.raises(ValueError, match=r"^expected frozen_to to be a layer of [^;]*; got 'conv9'"):
        train(replace(RECIPE, frozen_to="conv9"), source, tmp_path, ["classification"])
    # Classification has windows of the network's own side, whatever that of larger views.
    assert train(replace(RECIPE, side=8), source, tmp_path, ["classification"]).model.tasks == ("classification",)


@pytest.mark.parametrize("split, remedy", [("train", ""), ("val", ": --set val_split=none trains without")])
def test_a_split_without_objects_is_refused_before_anything_is_made(source, tmp_path, split, remedy):
    empty = replace(source, records_of={**source.records_of, split: [Record.of_objects(b"", "", [], [])]})
    message = f"^expected objects with boxes in split '{split}' of small; there are none{remedy}$"
    with pytest.raises(ValueError, match=message):
        train(RECIPE, empty, tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"^expected a split of small, one of train, val; got 'training'; did you mean 'train'\?$"
    ):
        train(replace(RECIPE, train_split="training"), source, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_of_which_none_can_be_read_are_refused_before_anything_is_made(source, tmp_path):
    cut = [replace(record, image_bytes=record.image_bytes[:2000]) for record in source.records("train")]
    spoilt = replace(source, records_of=source.records_of | {"train": cut})
    with pytest.raises(ValueError, match=r"^expected images that can be read in split 'train' of [^\n]*damaged"):
        train(RECIPE, spoilt, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_pycocotools_detection_is_refused_before_anything_is_made(source, tmp_path, monkeypatch):
    monkeypatch.setattr("training.evaluation.average_precision.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"^mAP needs pycocotools: pip install"):
        train(RECIPE, source, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_set_without_the_split_to_validate_on_is_fitted_and_said(source, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "_fit", lambda *_: ({}, {}))
    caplog.set_level("INFO", "training.run.preflight")
    train(replace(RECIPE, val_split="valid", patience=3), source, tmp_path)
    assert (
        "small has no split 'valid' but train, val: there is no validation; choose a split with --set val_split="
        in caplog.text
    )
    assert "patience=3 has no effect without validation" in caplog.text


def test_images_with_a_class_alone_are_fitted_for_classification_alone(source, tmp_path, no_boards):
    bare = {
        split: [Record.of_class(r.image_bytes, r.image_id, int(r.labels[0])) for r in records]
        for split, records in source.records_of.items()
    }
    classes = replace(source, records_of=bare, boxed=False)
    with pytest.raises(ValueError, match=r"^expected boxes for localization; small has classes alone: train it with "):
        train(RECIPE, classes, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert train(RECIPE, classes, tmp_path / "run", ["classification"]).model.tasks == ("classification",)


def test_localization_without_features_that_have_learnt_is_said(source, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "_fit", lambda *_: ({}, {}))
    train(RECIPE, source, tmp_path / "none", ["localization"])
    assert [message for message in caplog.messages if "learnt nothing yet" in message]
    caplog.clear()
    train(RECIPE, source, tmp_path / "both", ["classification", "localization"])
    train(RECIPE, source, tmp_path / "from", ["localization"], start=tmp_path / "both")
    train(replace(RECIPE, through_features=True), source, tmp_path / "through", ["localization"])
    assert not [message for message in caplog.messages if "learnt nothing yet" in message]


def test_detection_alone_is_fitted_and_calibrated(source, tmp_path, no_boards):
    with mock.patch.object(module, "calibrate", wraps=module.calibrate) as calibrated:
        train(RECIPE, source, tmp_path, stages=["detection"])
    assert calibrated.call_args.args[0].tasks == load(tmp_path).tasks == ("detection",)


@pytest.mark.long
def test_stages_one_after_the_other_are_as_all_at_once(source, tmp_path):
    """Where both draw random numbers, which a process between the two has not drawn."""
    short = replace(SCHEDULE, steps=2, epochs=1)
    recipe = replace(RECIPE, classification=short, localization=short, through_features=True)
    once = train(recipe, source, tmp_path / "once", ["classification", "localization"]).model
    train(recipe, source, tmp_path / "parts", ["classification"])
    parts = train(recipe, source, tmp_path / "parts", ["localization"]).model
    for part, expected in weights(once.network).items():
        for found, value in zip(weights(parts.network)[part], expected, strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-6, err_msg=part)


# --- When it goes wrong ----------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(source, tmp_path, no_boards):
    wild = replace(SCHEDULE, learning_rate=1e30, clip=1e30, steps=6, epochs=3)
    message = r"^the loss of localization is (nan|inf) at step [23]; lower .*localization\.learning_rate=.*--run$"
    with pytest.raises(FloatingPointError, match=message):
        train(replace(RECIPE, localization=wild, val_split="none"), source, tmp_path, ["localization"])
    assert read_config(tmp_path)["model"]["tasks"] == []
    assert not (tmp_path / "weights").exists()


def test_a_last_step_after_which_no_loss_is_finite_stops_the_run(source, tmp_path, no_boards):
    wild = replace(SCHEDULE, learning_rate=3.4e38, clip=1e38, steps=1, epochs=1, drops=())
    message = r"^the validation loss of localization is nan after step 1; lower .*localization\.learning_rate=.*--run$"
    with pytest.raises(FloatingPointError, match=message):
        train(replace(RECIPE, localization=wild), source, tmp_path, ["localization"])
    assert not (tmp_path / "weights").exists() and not list(tmp_path.rglob("ckpt-*"))


def test_weights_that_are_not_finite_stop_the_run():
    watch, model = FiniteLoss("localization", 7), keras.Sequential([keras.Input([2]), keras.layers.Dense(3)])
    watch.set_model(model)
    watch.on_epoch_end(0, {"loss": 1.0})
    with pytest.raises(FloatingPointError, match=r"^the loss of localization is nan at step 8; lower "):
        watch.on_train_batch_end(0, {"loss": np.nan})
    model.layers[0].bias.assign([0.0, np.inf, 0.0])
    with pytest.raises(FloatingPointError, match=r"^weights of localization are not finite after step 8; lower "):
        watch.on_epoch_end(1, {"loss": 1.0})


def test_a_full_disk_is_told_from_a_full_device(source, tmp_path, monkeypatch, no_boards):
    def full(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "ckpt-9.data; No space left on device")

    monkeypatch.setattr(module.Checkpoints, "save", full)
    with pytest.raises(OSError, match=rf"^expected space on the disk of '{tmp_path}'; it is full: make some, and "):
        train(replace(RECIPE, val_split="none"), source, tmp_path, ["localization"])


@pytest.mark.parametrize(
    "accumulate, way", [(1, "--set localization.accumulate=3, .* with another --run$"), (9, "use a larger device")]
)
def test_a_batch_that_does_not_fit_is_one_line_and_what_would_do(
    source, tmp_path, monkeypatch, no_boards, accumulate, way
):
    def full(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "no memory")

    monkeypatch.setattr(keras.Model, "fit", full)
    large = replace(RECIPE, localization=replace(SCHEDULE, batch=9, accumulate=accumulate), val_split="none")
    with pytest.raises(RuntimeError, match=rf"^expected a batch of 9 to fit the device's memory; it does not: {way}"):
        train(large, source, tmp_path, ["localization"])
