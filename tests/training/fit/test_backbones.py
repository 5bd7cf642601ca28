"""Every kind of backbone through the whole system in a few steps: train, resume, evaluate, export, serve, reuse."""

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from small_run import SCHEDULE
from small_source import coloured_rectangles

import overfeat_tf as of
from overfeat_tf.network.keras_backbone import leaf_layers
from overfeat_tf.options import InferenceOptions
from serving.client.client import Client
from serving.embedded.server import start
from serving.export.exporter import export
from training.evaluation.evaluate import evaluate
from training.fit import train as module
from training.fit.stages import detection_model
from training.fit.train import train
from training.recipes import get_recipe

SOURCE = coloured_rectangles()
IMAGES = [record.image_bytes for record in SOURCE.records("train")]
STEPS = replace(SCHEDULE, steps=2, batch=2, epochs=2, learning_rate=1e-3)


def keras_file(folder: Path) -> str:
    """Write a classifier of our own, with batch normalisation, a residual and a fixed input size."""
    pixels = keras.Input((96, 96, 3))
    x = layers.Rescaling(1 / 128, -1)(pixels)
    for number, channels in enumerate((8, 8, 12, 12)):
        x = layers.Conv2D(channels, 3, 2, "same", use_bias=False, name=f"conv{number}")(x)
        x = layers.BatchNormalization(name=f"norm{number}")(x)
        x = layers.ReLU(6, name=f"act{number}")(x)
    x = layers.Add(name="sum")([x, layers.Conv2D(12, 3, padding="same", name="inner")(x)])
    model = keras.Model(pixels, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))
    model.save(folder / "classifier.keras")
    return str(folder / "classifier.keras")


def hub_preset(folder: Path) -> str:
    """Write a preset of KerasHub's: a small DenseNet with random weights."""
    hub = pytest.importorskip("keras_hub")
    backbone = hub.models.DenseNetBackbone([1, 1, 1], growth_rate=4, image_shape=(None, None, 3))
    backbone.save_to_preset(str(folder / "densenet"))
    hub.layers.ImageConverter(scale=1 / 255, offset=-0.5).save_to_preset(str(folder / "densenet"))
    return f"keras_hub:{folder / 'densenet'}"


KINDS = {
    "file": (keras_file, "imagenet"),
    "application": (lambda _: "MobileNetV3Small", None),
    "hub": (hub_preset, "imagenet"),
}


def recipe_for(name: str, weights: str | None):
    return replace(
        get_recipe("finetune"),
        preset=name,
        weights=weights,
        layer=None,
        classification=replace(STEPS, backbone_multiplier=0.0),
        localization=STEPS,
        detection=replace(STEPS, warm_up=1, backbone_multiplier=0.5),
        views=replace(get_recipe("finetune").views, per_image=2),
        scales="preset",
        precision="float32",
        inference=InferenceOptions(scales=(1,), max_windows=50),
        validation_images=2,
        val_split="none",
    )


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize(
    "kind", ["file", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("application", "hub"))]
)
def test_a_backbone_goes_through_the_whole_system(kind, tmp_path, monkeypatch, no_boards):
    make, weights = KINDS[kind]
    name = make(tmp_path)
    recipe, run = recipe_for(name, weights), tmp_path / "run"

    # Train, broken off before the last stage, and resume without the backbone's file.
    fit = module._fit

    def until_detection(stage, *rest):
        if stage == "detection":
            raise Killed
        return fit(stage, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_fit", until_detection)
        with pytest.raises(Killed):
            train(recipe, SOURCE, run)
    if kind == "file":
        Path(name).unlink()
    trained, model = train(recipe, SOURCE, run).model, of.load(run)
    assert model.tasks == trained.tasks == ("classification", "localization", "detection")
    for part, ours in model.network.parts.items():
        for found, expected in zip(ours.get_weights(), trained.network.parts[part].get_weights(), strict=True):
            np.testing.assert_array_equal(found, expected, err_msg=part)
    model = replace(model, tasks=("detection",))
    assert set(evaluate(model, SOURCE, "train", quiet=True)) >= {"map", "map50"}

    # Exported, which compares what is reloaded, and served, it answers as it does live.
    live = model.detect(IMAGES)
    version = export(model, tmp_path / "models" / "shapes", None, {"name": "finetune"}, {"map50": 0.0})
    with start([version.parent], port=0) as server, Client(server.address, "shapes") as client:
        answer = client.detect(IMAGES)
    for key in ("detection_boxes", "detection_scores", "detection_classes", "num_detections"):
        np.testing.assert_allclose(answer[key], live[key], rtol=1e-4, atol=1e-4, err_msg=key)

    # Reused: the features learn in another program, but for their statistics.
    loaded = tf.saved_model.load(str(version))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(loaded.features(tf.random.uniform([1, 256, 256, 3], maxval=255)) ** 2)
    gradients = tape.gradient(total, loaded.trainable_variables)
    assert sum(gradient is not None for gradient in gradients) >= len(model.network.backbone.trainable_weights)
    (maps,) = model.extract_features([np.zeros((256, 256, 3), np.uint8)], layer="neck")
    assert maps.shape[-1] == model.network.preset.backbone.channels


def test_what_is_frozen_stays_and_the_rest_moves(tmp_path):
    """By schedule, by layer, by stride and by kind: batch normalisation keeps its statistics unless asked otherwise."""
    recipe = recipe_for(keras_file(tmp_path), "imagenet")
    network = of.build(recipe.preset, 3, background=True, box_form=recipe.box_form)
    side, steps = network.preset.smallest_input, replace(STEPS, learning_rate=0.01)
    recipe = replace(recipe, side=side, fine=True, detection=steps)

    def learning(**changes) -> set[str]:
        detection_model(network, replace(recipe, **changes))
        return {layer.name for layer, _ in leaf_layers(network.backbone) if layer.trainable and layer.weights}

    convolutions, norms = {"conv0", "conv1", "conv2", "conv3"}, {f"norm{n}" for n in range(4)}
    assert learning(frozen_to=None) == convolutions
    assert learning(frozen_to=None, batch_norm="training") == convolutions | norms
    assert not learning(detection=replace(steps, backbone_multiplier=0.0))
    # A stride of 2: conv1 is the first of a larger one. What starts from random weights is not frozen.
    assert learning(frozen_to="2") == convolutions - {"conv0"}
    assert learning(frozen_to="2", weights=None) == convolutions
    with pytest.raises(ValueError, match="did you mean 'act1'"):
        learning(frozen_to="atc1")
    assert learning(frozen_to="act1") == convolutions - {"conv0", "conv1"}

    fitted = detection_model(network, replace(recipe, frozen_to="act1"))
    before = network.backbone.get_weights()
    pixels = np.random.default_rng(0).uniform(0, 255, (2, side, side, 3)).astype(np.float32)
    fitted.train_on_batch(pixels, {"scores": np.ones((2, 2, 2), int), "boxes": np.ones((2, 2, 2, 5), np.float32)})
    changed = [not np.array_equal(*pair) for pair in zip(before, network.backbone.get_weights(), strict=True)]
    moved = {w.path.split("/")[-2] for w, new in zip(network.backbone.weights, changed, strict=True) if new}
    assert moved == {"conv2", "conv3"}


def test_steps_follow_from_the_size_of_the_set():
    schedule = replace(SCHEDULE, steps=5000, batch=10, passes=20.0)
    assert [schedule.sized(images).steps for images in (5, 400, 10**6)] == [200, 800, 5000]
    sized = replace(get_recipe("finetune"), detection=schedule).sized(SOURCE)
    assert sized.detection.steps == 200 and sized.detection.passes is None
