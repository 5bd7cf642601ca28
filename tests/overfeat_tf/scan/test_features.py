"""Features by layer: each layer against the Keras layers called one by one and plain numpy pooling, and refusals."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import overfeat_tf as of
from overfeat_tf.models.batches import Inference
from overfeat_tf.models.model import SHARED_PRODUCT, Model
from overfeat_tf.network.presets import get_preset
from overfeat_tf.scan.features import default_layer, extract, layer_names

FEATURES = ["conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "conv3", "relu3", "conv4", "relu4"]
CLASSIFIER = ["pool4", "full5", "full5_relu", "full6", "full6_relu", "scores"]
REGRESSOR = ["regress5", "regress5_relu", "regress6", "regress6_relu", "box"]


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(1)
    network = of.build("tiny", 3)
    network.regressor  # noqa: B018 - built by asking for it
    for part in network.parts.values():
        for layer in part.layers:
            if layer.weights:
                layer.bias.assign(np.random.default_rng(2).normal(0, 0.1, layer.bias.shape))
    return network


@pytest.fixture(scope="module")
def model(network):
    return Model(network, ("cat", "dog", "bird"))


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def one_by_one(part, values):
    """Call a part's layers one after the other; give each one's output, by its name."""
    outputs = {}
    for layer in part.layers:
        if not isinstance(layer, keras.layers.InputLayer | keras.layers.Dropout):
            values = outputs[layer.name] = layer(values).numpy()
    return outputs


def blocks(maps, side):
    """Pool without overlap, [B, n, m, C]."""
    rows, columns = maps.shape[1] // side, maps.shape[2] // side
    cut = maps[:, : rows * side, : columns * side]
    return cut.reshape(len(maps), rows, side, columns, side, -1).max((2, 4))


def plainly(network, image, fine):
    """Give every layer's output [h, w, C] by its name, for an image [H, W, 3] that holds a window."""
    outputs = one_by_one(network.features, image[None].astype(np.float32))
    maps, pool, kernel = outputs["relu4"], network.preset.last_pool, network.preset.head_kernel
    if not fine:
        outputs["pool4"] = blocks(maps, pool)
        for part in (network.classifier, network.regressor):
            outputs |= one_by_one(part, outputs["pool4"])
        return {name: output[0] for name, output in outputs.items()}
    # The paper's way (3.3 b-e): each offset's pooling by itself, the heads on each, and their answers interleaved.
    sides = {"pool4": [n - pool + 1 for n in maps.shape[1:3]]}
    for down, across in np.ndindex(pool, pool):
        offset = {"pool4": blocks(maps[:, down:, across:], pool)}
        if min(offset["pool4"].shape[1:3]) >= kernel:  # else no window fits at this offset
            for part in (network.classifier, network.regressor):
                offset |= one_by_one(part, offset["pool4"])
        for name, output in offset.items():
            side = sides.get(name, [n - pool * kernel + 1 for n in maps.shape[1:3]])
            full = outputs.setdefault(name, np.full((1, *side, output.shape[-1]), np.nan, np.float32))
            place = full[:, down::pool, across::pool]
            place[:] = output[:, : place.shape[1], : place.shape[2]]
    return {name: output[0] for name, output in outputs.items()}


def test_the_layers_have_names():
    network = of.build("tiny", 3)
    assert layer_names(network) == FEATURES + CLASSIFIER
    network.regressor  # noqa: B018 - built by asking for it
    assert layer_names(network) == FEATURES + CLASSIFIER + REGRESSOR
    assert [default_layer(get_preset(name)) for name in ("tiny", "fast", "accurate")] == ["full6", "full7", "full8"]


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (53, 79)])
def test_every_layer_is_as_one_by_one(network, size, fine):
    image = picture(*size)
    expected = plainly(network, image, fine)
    for name in layer_names(network):
        (found,) = extract(network, [tf.constant(image[None])], name, fine=fine)
        assert not np.isnan(expected[name]).any()
        np.testing.assert_allclose(found[0], expected[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_layers_are_given_before_their_rectifier(network):
    outputs = plainly(network, picture(50, 50), False)
    for name in ("conv1", "full5", "full6"):
        (found,) = extract(network, [tf.constant(picture(50, 50)[None])], name)
        assert found.numpy().min() < 0
        np.testing.assert_allclose(found[0], outputs[name], rtol=1e-4, atol=1e-4)


def test_an_image_smaller_than_the_window_is_padded_with_the_mean(network):
    image = picture(9, 40)
    canvas = np.full((32, 40, 3), network.preset.mean, np.float32)
    canvas[:9] = image
    for name in ("conv1", "pool4", "full6"):
        (found,) = extract(network, [tf.constant(image[None])], name)
        np.testing.assert_allclose(found[0], plainly(network, canvas, False)[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("layer", ["conv2", "pool4", "full6", "scores"])
def test_a_scale_is_the_image_resized_to_it(network, layer, fine):
    image = picture(208, 208)  # four times scale 2 of `tiny`, so that its shape needs no fitting
    resized = tf.image.resize(tf.cast(image, tf.float32), (52, 52), antialias=True).numpy()
    (found,) = extract(network, [tf.constant(image[None])], layer, scale=2, fine=fine)
    np.testing.assert_allclose(found[0], plainly(network, resized, fine)[layer], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "scale", "fine"), [(None, None, False), ("scores", 2, True), ("pool4", 3, True), ("conv3", None, False)]
)
def test_images_of_mixed_sizes_are_answered_as_alone(model, layer, scale, fine):
    sizes = [(40, 60), (9, 90), (64, 64), (100, 33), (1, 1)] * 2
    assert len(sizes) > SHARED_PRODUCT
    images = [picture(*size, seed) for seed, size in enumerate(sizes)]
    together = model.extract_features(images, layer, scale, fine)
    assert len(together) == len(images)
    for image, found in zip(images, together, strict=True):
        (alone,) = model.extract_features([image], layer, scale, fine)
        assert found.dtype == np.float32 and found.ndim == 3
        np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-5)


def test_many_images_of_one_shape_may_come_as_an_array(model):
    images = np.stack([picture(40, 50, seed) for seed in range(3)])
    for found, image in zip(model.extract_features(images), images, strict=True):
        np.testing.assert_allclose(found, model.extract_features([image])[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
        of.extract_features(model.network, [images[0]])[0], model.extract_features([images[0]])[0]
    )


@pytest.mark.parametrize("images", [[], [picture(40, 40)]])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "ful6"}, "one of conv1, relu1, .*; got 'ful6'; did you mean 'full6'?"),
        ({"layer": "normalise"}, "expected a layer of 'tiny'"),
        ({"scale": 0}, r"expected scales of 'tiny' from 1 to 7; got \[0\]"),
        ({"scale": 8}, r"from 1 to 7; got \[8\]"),
    ],
)
def test_what_a_network_does_not_have_is_refused(model, images, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.extract_features(images, **arguments)


def test_boxes_that_were_not_fitted_have_no_layers():
    with pytest.raises(ValueError, match="got 'regress5'"):
        extract(of.build("tiny", 3), [tf.constant(picture(40, 40)[None])], "regress5")


def test_a_savedmodel_has_the_default_alone(model, tmp_path):
    class Servable(tf.Module):
        def __init__(self):
            super().__init__()
            inference = Inference(model.network, model.labels, model.options)
            self.kept = [variable.value for part in model.network.parts.values() for variable in part.variables]
            pixels = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
            self.extract_features = tf.function(inference.extract_features, [pixels], autograph=False)

    servable = Servable()
    tf.saved_model.save(servable, str(tmp_path), signatures={"extract_features": servable.extract_features})
    (tmp_path / "config.json").write_text(json.dumps({"model": model.config()}))
    exported = of.load(tmp_path)
    images = [picture(40, 60), picture(9, 90, 1)]
    for found, live in zip(exported.extract_features(images), model.extract_features(images), strict=True):
        np.testing.assert_allclose(found, live, rtol=1e-4, atol=1e-5)
    for arguments in ({"layer": "pool4"}, {"scale": 1}, {"fine": True}):
        for some in ([], images):
            with pytest.raises(ValueError, match="expected the default layer, native size and coarse stride"):
                exported.extract_features(some, **arguments)
