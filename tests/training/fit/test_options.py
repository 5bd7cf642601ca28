"""The recipe's options of the network and of the box loss: a few steps of each, kept, reloaded and exported."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_run import RECIPE, SCHEDULE
from small_source import few_digits

from overfeat_tf.boxes import decode, iou
from overfeat_tf.models.loading import load
from overfeat_tf.network.convnet import build
from serving.export.exporter import export
from training.fit import train as module
from training.fit.losses import BoxLoss
from training.fit.train import train
from training.recipes import override
from training.tasks import TRAINED_TASKS

SHORT = replace(SCHEDULE, steps=2, epochs=1)
SHORT_RECIPE = replace(
    RECIPE,
    classification=SHORT,
    localization=SHORT,
    detection=SHORT,
    val_split="none",
    inference=replace(RECIPE.inference, scales=(1,)),
)
# What was added after the first runs were made.
LATER = {"per_class": True, "box_form": "center_size", "box_loss": "iou", "through_features": True, "context": True}


ALL = (
    "per_class=True",
    "box_form=center_size",
    "box_loss=giou",
    "through_features=True",
    "context=True",
    "negatives=random",
)


@pytest.fixture(scope="module")
def source():
    return few_digits(8, 2)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-4, err_msg=key)
        else:
            np.testing.assert_array_equal(found[key], value)


OPTIONS = (
    "per_class=True",
    "box_form=center_size",
    "box_loss=iou",
    "box_loss=giou",
    "through_features=True",
    "context=True",
)


@pytest.mark.parametrize(
    "settings",
    # The two that give the regressor another shape; the other long test has them all at once.
    [["per_class=True", "context=True"], *(pytest.param([option], marks=pytest.mark.long) for option in OPTIONS)],
)
def test_a_run_with_the_option_is_the_same_reloaded(source, tmp_path, no_boards, settings):
    model = train(override(SHORT_RECIPE, settings), source, tmp_path, ["localization"]).model
    reloaded = load(tmp_path)
    assert reloaded.config() == model.config()
    images = [record.image_bytes for record in source.records("val")]
    assert_same(reloaded.localize(images), model.localize(images))


@pytest.mark.long
def test_a_run_with_all_options_answers_the_same_reloaded_and_exported(source, tmp_path):
    recipe = override(SHORT_RECIPE, [*ALL, "inference.min_score=0.05"])
    model = train(recipe, source, tmp_path / "run").model
    reloaded = load(tmp_path / "run")
    exported = load(export(reloaded, tmp_path / "served"))
    images = [record.image_bytes for record in source.records("val")]
    detected, localized = model.detect(images), model.localize(images)
    assert detected["num_detections"].min() > 0
    for other in (reloaded, exported):
        assert_same(other.detect(images), detected)
        assert_same(other.localize(images), localized)


def view_batch(network, side=52):
    """Make a batch of views, and targets that ask every window for one of two boxes, by its class."""
    count = network.preset.window_count(side)
    rng = np.random.default_rng(0)
    classes = rng.integers(1, 3, (4, count, count))
    edges = np.where(classes[..., None] == 1, [0.1, 0.2, 0.6, 0.9], [0.3, 0.1, 0.9, 0.7])
    pixels = rng.uniform(0, 255, (4, side, side, 3)).astype(np.float32)
    boxes = np.concatenate([edges, classes[..., None]], axis=-1).astype(np.float32)
    return tf.constant(pixels), {"boxes": tf.constant(boxes), "scores": tf.constant(classes.astype(np.int32))}


def fitted_boxes(network, recipe, steps=60):
    """Fit the localization stage to `view_batch`; give the regressor's output, and the losses before and after."""
    pixels, targets = view_batch(network)
    fitted = TRAINED_TASKS["localization"].model(network, recipe)
    targets = {name: targets[name] for name in fitted.output}
    losses = []
    for _ in range(steps):
        fitted.reset_metrics()  # some versions of Keras give the mean of all steps so far
        losses.append(fitted.train_on_batch(pixels, targets, return_dict=True)["loss"])
    return fitted(pixels)["boxes"].numpy(), losses[0], losses[-1]


def test_each_class_learns_its_own_box():
    keras.utils.set_random_seed(0)
    network = build("tiny", 3, per_class=True)
    start = network.regressor.get_weights()[-1].reshape(3, 4)
    boxes, first, last = fitted_boxes(network, RECIPE)
    assert last < first / 20
    np.testing.assert_allclose(boxes[..., 0:4].mean(axis=(0, 1, 2)), [0.1, 0.2, 0.6, 0.9], atol=0.07)
    np.testing.assert_allclose(boxes[..., 4:8].mean(axis=(0, 1, 2)), [0.3, 0.1, 0.9, 0.7], atol=0.07)
    # The third is no window's: nothing but weight decay has moved it.
    np.testing.assert_array_equal(network.regressor.get_weights()[-1].reshape(3, 4)[2], start[2])


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("iou", "edges"),
        ("giou", "center_size"),
        *(
            pytest.param(kind, form, marks=pytest.mark.long)
            for kind, form in (
                ("l2", "edges"),
                ("l2", "center_size"),
                ("iou", "center_size"),
                ("giou", "edges"),
                ("giou_l1", "center_size"),
            )
        ),
    ],
)
def test_each_loss_finds_the_box(form, kind):
    keras.utils.set_random_seed(0)
    network = build("tiny", 2, per_class=True, box_form=form)
    steps = 200  # at a constant rate the loss still rises and falls
    recipe = override(RECIPE, [f"box_loss={kind}", f"localization.steps={steps}", "localization.drops=0.5,"])
    values, first, last = fitted_boxes(network, recipe, steps)
    assert last < first / 4
    for truth, own in (([0.1, 0.2, 0.6, 0.9], values[..., 0:4]), ([0.3, 0.1, 0.9, 0.7], values[..., 4:8])):
        found = decode(tf.constant(own.reshape(-1, 4)), form)
        assert iou(tf.constant(truth), found).numpy().mean() > 0.85


@pytest.mark.parametrize(
    ("through", "background"),
    [(False, True), (True, False), *(pytest.param(both, both, marks=pytest.mark.long) for both in (False, True))],
)
def test_the_localization_loss_stops_at_the_regressor_or_goes_through_the_whole_network(through, background):
    keras.utils.set_random_seed(0)
    network = build("tiny", 2, background=background)
    parts = {"features": network.features, "classifier": network.classifier, "regressor": network.regressor}
    before = {name: [np.array(w) for w in part.get_weights()] for name, part in parts.items()}
    fitted_boxes(network, override(RECIPE, [f"through_features={through}"]), 2)
    moved = {
        name
        for name, part in parts.items()
        if not all(np.array_equal(old, new) for old, new in zip(before[name], part.get_weights(), strict=True))
    }
    assert moved == (set(parts) if through else {"regressor"})


def test_the_box_loss_alone_moves_the_features():
    network = build("tiny", 2)
    pixels, targets = view_batch(network)
    fitted = TRAINED_TASKS["localization"].model(network, override(RECIPE, ["through_features=True"]))
    with tf.GradientTape() as tape:
        loss = BoxLoss()(targets["boxes"], fitted(pixels)["boxes"])
    assert all(np.any(g) for g in tape.gradient(loss, network.features.trainable_variables))


def test_a_run_from_before_the_options_is_taken_up(source, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_fit", lambda *_: ({}, {}))
    monkeypatch.setattr(module, "calibrate", lambda *_, **__: None)
    train(SHORT_RECIPE, source, tmp_path, ["detection"])
    config = json.loads((tmp_path / "config.json").read_text())
    for key in LATER:
        del config["training"][key]
        config["model"].pop(key, None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(tmp_path).tasks == ("detection",)
    assert train(SHORT_RECIPE, source, tmp_path, ["detection"]).model.tasks == ("detection",)
    for key, value in LATER.items():
        with pytest.raises(ValueError, match=f"^expected the settings .*; {key} differ"):
            train(override(SHORT_RECIPE, [f"{key}={value}"]), source, tmp_path, ["detection"])
