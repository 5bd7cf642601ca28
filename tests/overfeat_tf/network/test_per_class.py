"""The regressor with a box for each class (PCR, 4.3): every answer has its own class's box."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import overfeat_tf as of
from overfeat_tf.models.inference import detect, localize
from overfeat_tf.network.convnet import build
from overfeat_tf.options import InferenceOptions
from overfeat_tf.scan.dense_scan import scan
from serving.export.exporter import export

CLASSES = 3
# In window sides: each class has a place and size of its own.
EDGES = np.array([[0.0, 0.0, 0.25, 0.5], [0.25, 0.25, 1.0, 0.5], [0.5, 0.5, 0.75, 1.0]], np.float32)
SIDE = 36  # tiny's first scale, fine: windows at 0 and 4 pixels


def network_that_says(per_class, background, favourite=1):
    """Build a network that is sure of one class everywhere, and whose regressor gives the same edges everywhere."""
    keras.utils.set_random_seed(0)
    network = build("tiny", CLASSES, background=background, per_class=per_class)
    for head in (network.classifier, network.regressor):
        head.layers[-1].kernel.assign(tf.zeros_like(head.layers[-1].kernel))
    network.regressor.layers[-1].bias.assign(EDGES.reshape(-1) if per_class else EDGES[0])
    logits = np.zeros(CLASSES + background, np.float32)
    logits[background + favourite] = 9.0
    network.classifier.layers[-1].bias.assign(logits)
    return network


def image():
    return tf.constant(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8))


def test_a_scan_has_a_box_for_each_class():
    options = InferenceOptions(scales=(1,), flips=True)
    plain, mirrored = scan(network_that_says(True, True), image(), options)
    assert plain.boxes.shape == (2, 2, CLASSES, 4)
    for i, j, label in np.ndindex(2, 2, CLASSES):
        expected = (EDGES[label] * 32 + np.array([4 * i, 4 * j] * 2)) / SIDE
        np.testing.assert_allclose(plain.boxes[i, j, label], expected, rtol=1e-5, atol=1e-6)
        ymin, xmin, ymax, xmax = expected
        np.testing.assert_allclose(mirrored.boxes[i, j, label], (ymin, 1 - xmax, ymax, 1 - xmin), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("favourite", range(CLASSES))
def test_a_detection_has_its_own_classs_box(favourite):
    network = network_that_says(True, True, favourite)
    options = InferenceOptions(scales=(1,), min_score=0.5, merge_threshold=1.5)
    found = detect(network, scan(network, image(), options), [SIDE, SIDE], options).answer
    assert int(found.count) == 1 and int(found.classes[0]) == favourite + 1
    expected = (EDGES[favourite] * 32 + 2) / SIDE  # four windows agree, 2 pixels off on average
    np.testing.assert_allclose(found.boxes[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("background", [False, True])
def test_guesses_have_their_own_classes_boxes(background):
    network = network_that_says(True, background)
    options = InferenceOptions(scales=(1,), merge_threshold=1.5)
    found = localize(network, scan(network, image(), options), [SIDE, SIDE], options).answer
    assert found.classes[0] == 2 and sorted(found.classes.numpy()) == [1, 2, 3]
    for label, box in zip(found.classes.numpy() - 1, found.boxes.numpy(), strict=True):
        np.testing.assert_allclose(box, (EDGES[label] * 32 + 2) / SIDE, rtol=1e-4, atol=1e-4)


def test_one_regressor_for_all_gives_all_classes_the_same_box():
    network, options = network_that_says(False, False), InferenceOptions(scales=(1,), merge_threshold=1.5)
    found = localize(network, scan(network, image(), options), [SIDE, SIDE], options).answer
    np.testing.assert_allclose(found.boxes, np.tile((EDGES[0] * 32 + 2) / SIDE, (CLASSES, 1)), rtol=1e-4, atol=1e-4)


def test_the_form_comes_back_from_disk_and_is_served(tmp_path):
    keras.utils.set_random_seed(4)
    network = build("tiny", CLASSES, background=True, per_class=True)
    for head in (network.classifier, network.regressor):
        head.layers[-1].kernel.assign(head.layers[-1].kernel * 40)
    network.regressor.layers[-1].bias.assign(EDGES.reshape(-1))
    model = of.Model(network, ("a", "b", "c"), InferenceOptions(scales=(1,)), ("detection",))
    model.save_weights(tmp_path / "run" / "weights")
    (tmp_path / "run" / "config.json").write_text(json.dumps({"model": model.config()}))
    loaded = of.load(tmp_path / "run")
    assert loaded.network.per_class and loaded.network.regressor.output_shape[-1] == 4 * CLASSES
    exported = of.load(export(loaded, tmp_path / "served"))
    pixels = image().numpy()[None]
    for key, value in model.detect(pixels).items():
        for other in (loaded, exported):
            answer = other.detect(pixels)[key]
            same = np.allclose(answer, value, atol=1e-4) if value.dtype.kind == "f" else np.array_equal(answer, value)
            assert same, key
