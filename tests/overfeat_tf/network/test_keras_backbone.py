"""Any Keras model as feature layers: where its cells look, what it says of itself, and what it refuses."""

import inspect
import json
import sys
import zipfile
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import overfeat_tf as of
from overfeat_tf.compute import execution
from overfeat_tf.compute.execution import execution_of
from overfeat_tf.models.model import Model
from overfeat_tf.network import pretrained
from overfeat_tf.network.convnet import build
from overfeat_tf.network.keras_backbone import KerasBackbone
from overfeat_tf.network.presets import PRESETS
from overfeat_tf.network.pretrained import backbone_preset, read_backbone
from overfeat_tf.scan.dense_scan import scan

# Kernel, stride, padding and whether TensorFlow's SAME pads: of kinds that shift a cell's centre by other amounts.
CHAINS = {
    "same": [(3, 2, 0, True), (3, 1, 0, True), (5, 2, 0, True), (3, 2, 0, True)],  # EfficientNet's
    "symmetric": [(7, 2, 3, False), (3, 2, 1, False), (3, 2, 1, False)],  # ResNet's
    "valid": [(3, 2, 0, False), (3, 1, 0, False), (3, 2, 0, False)],  # Inception's
    "deep": [*[(5, 1, 0, False)] * 4, (3, 2, 0, False)],  # a cell sees far more than its stride, and nothing pads
    "patches": [(4, 4, 0, False), (2, 2, 0, False)],  # ConvNeXt's
}


def chain(rows, channels=4) -> keras.Model:
    """Build a linear chain of convolutions whose weights are all positive: a gradient shows what a cell sees."""
    x = pixels = keras.Input((None, None, 3))
    for number, (kernel, stride, padding, same) in enumerate(rows):
        if padding:
            x = layers.ZeroPadding2D(padding)(x)
        mode = "same" if same else "valid"
        x = layers.Conv2D(
            channels, kernel, stride, mode, kernel_initializer="ones", activation="relu", name=f"row{number}"
        )(x)
    return keras.Model(pixels, x)


def saved(model: keras.Model, folder) -> str:
    path = str(folder / "model.keras")
    model.save(path)
    return path


@keras.saving.register_keras_serializable("tests")
class ScaledSum(layers.Layer):
    """Joins two maps, as InceptionResNetV2's own layer does."""

    def call(self, inputs):
        return inputs[0] + 0.2 * inputs[1]


def test_a_layer_of_another_kind_may_join_two_maps(tmp_path):
    pixels = keras.Input((None, None, 3))
    one = layers.Conv2D(4, 3, 4, "same", activation="relu")(pixels)
    both = ScaledSum()([one, layers.Conv2D(4, 3, 1, "same")(one)])
    backbone, _ = read_backbone(saved(keras.Model(pixels, layers.ReLU(name="joined")(both)), tmp_path), "joined")
    assert backbone.stride == 4 and backbone.sides(64)[-1] == 16


@pytest.mark.parametrize("name", CHAINS)
def test_cells_look_at_their_own_pixels(name, tmp_path):
    """The gradient of a cell is centred on the square of pixels that the window's geometry gives it."""
    model = chain(CHAINS[name])
    last = model.layers[-1].name
    backbone, cut = read_backbone(saved(model, tmp_path), last)
    preset = backbone_preset(backbone)
    network = build(preset, 2, weights=False)
    network.backbone.set_weights(cut.get_weights())
    # The normalisation of the last map divides by its cell's own spread: look at the map before it.
    maps = keras.Model(network.features.input, network.features.get_layer("normalise").input)
    side = 12 * preset.coarse_stride
    pixels = tf.Variable(tf.ones([1, side, side, 3]))
    middle = preset.feature_side(side) // 2
    for cell in (middle, middle + 1):
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(maps(pixels)[0, cell, cell])
        seen = tf.reduce_sum(tf.abs(tape.gradient(value, pixels)), axis=[0, 3]).numpy()
        places = np.arange(side) + 0.5
        centre = [(seen.sum(axis=1 - axis) * places).sum() / seen.sum() for axis in (0, 1)]
        assert np.abs(np.array(centre) - (cell + 0.5) * preset.fine_stride).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("name", CHAINS)
def test_map_sides_are_those_of_the_model(name, tmp_path):
    backbone, _ = read_backbone(saved(chain(CHAINS[name]), tmp_path), f"row{len(CHAINS[name]) - 1}")
    preset = backbone_preset(backbone)
    network = build(preset, 2, weights=None)
    for side in (preset.window, preset.smallest_input, preset.window + 13, 2 * preset.window + 1):
        assert network.features(np.zeros((1, side, side, 3))).shape[1] == preset.feature_side(side)
    assert preset.feature_side(preset.window) == preset.last_pool * preset.head_kernel


def test_counts_what_keras_counts(tmp_path):
    model = keras.applications.MobileNetV2(alpha=0.35, include_top=False, weights=None, input_shape=(96, 96, 3))
    file = saved(model, tmp_path)
    backbone, cut = read_backbone(file)
    assert (backbone.layer, backbone.stride, backbone.channels) == ("block_13_expand_relu", 16, backbone.neck)
    finer, _ = read_backbone(file, 8)
    assert (finer.layer, finer.stride, finer.pool) == ("block_6_expand_relu", 8, 4)
    assert backbone.layers[-1].inputs == cut.output.shape[-1]
    convolutions = (layers.Conv2D, layers.DepthwiseConv2D)
    kernels = [layer.kernel for layer in cut.layers if isinstance(layer, convolutions)]
    assert [row.multiply_adds for row in backbone.layers[:-1]] == [int(np.prod(kernel.shape)) for kernel in kernels]
    network = build(backbone_preset(backbone), 2, weights=False)
    assert backbone.parameters == network.features.count_params()


def test_every_kind_of_layer_with_weights_is_counted(tmp_path):
    pixels = keras.Input((64, 64, 3))
    x = layers.SeparableConv2D(8, 3, 2, "same", depth_multiplier=2)(pixels)
    x = layers.Dense(12)(x[:, :, ::1])  # an operation that is no layer
    x = layers.Conv2D(5, 3, 2, "same", activation="relu", name="last")(x)
    backbone, cut = read_backbone(saved(keras.Model(pixels, x), tmp_path), "last")
    by_hand = [9 * 6, 6 * 8, 8 * 12, 9 * 12 * 5, 5 * backbone.neck]
    assert [layer.multiply_adds for layer in backbone.layers] == by_hand
    assert sum(layer.parameters for layer in backbone.layers[:-1]) == cut.count_params() + 6  # no depthwise bias
    network = of.build(backbone_preset(backbone), 2, weights=False)
    for name in backbone.map_names:
        network.features_until(name)


def test_models_within_a_model_are_joined_and_random_layers_left_out(tmp_path):
    """As transfer learning is usually written: augmentation, then a pretrained model, each a layer of the outer one."""
    keras.utils.set_random_seed(0)
    rows = [layers.Conv2D(4, 3, 2, "same", activation="relu", name=f"row{number}") for number in range(4)]
    inner = keras.Sequential([keras.Input((32, 32, 4)), *rows[2:]], name="inner")
    middle = keras.Model(seen := keras.Input((128, 128, 3)), inner(rows[1](rows[0](seen))), name="middle")
    augment = keras.Sequential([layers.RandomFlip("horizontal"), layers.RandomRotation(0.2)], name="augment")
    pixels = keras.Input((128, 128, 3))
    model = keras.Model(pixels, middle(layers.Rescaling(1 / 128)(augment(pixels)), training=False))
    backbone, cut = read_backbone(saved(model, tmp_path))
    assert (backbone.layer, backbone.stride) == ("row3", 16)
    assert [row.name for row in backbone.layers] == ["row0", "row1", "row2", "row3", "neck"]
    pictures = np.random.default_rng(0).uniform(0, 255, (4, 128, 128, 3)).astype(np.float32)
    expected = model(pictures, training=False)
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(cut(pictures, training=True), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_what_was_trained_in_mixed_precision_computes_in_float32(policy, tmp_path):
    keras.utils.set_random_seed(0)
    x = pixels = keras.Input((None, None, 3))
    for number in range(4):
        x = layers.Conv2D(4, 3, 2, "same", activation="relu", dtype=policy, name=f"row{number}")(x)
    backbone, cut = read_backbone(saved(keras.Model(pixels, x), tmp_path))
    network = build(backbone_preset(backbone), 2)
    network.backbone.set_weights(cut.get_weights())
    pictures = np.random.default_rng(0).uniform(0, 1, (1, 64, 64, 3)).astype(np.float32)
    expected = chain([(3, 2, 0, True)] * 4)
    expected.set_weights(cut.get_weights())
    for model in (cut, network.backbone):
        np.testing.assert_allclose(model(pictures), expected(pictures), rtol=1e-5, atol=1e-7)


def test_padding_by_a_function_places_cells_as_the_layer_does(tmp_path):
    def padded(pad):
        pixels = keras.Input((None, None, 3))
        x = pad(layers.Conv2D(4, 3, 2, name="row0")(pixels))
        return read_backbone(saved(keras.Model(pixels, layers.Conv2D(4, 3, 2, name="row1")(x)), tmp_path), "row1")[0]

    function = padded(lambda x: keras.ops.pad(x, ((0, 0), (2, 1), (2, 1), (0, 0))))
    layer = padded(layers.ZeroPadding2D(((2, 1), (2, 1))))
    assert function.placement == layer.placement and function.sides(200) == layer.sides(200)


def test_the_preprocessing_of_a_hub_preset_is_part_of_the_network(monkeypatch):
    scale, offset = [0.02, 0.03, 0.04], [-2.0, -1.0, 0.5]
    backbone = chain(CHAINS["patches"])
    found = SimpleNamespace(scale=scale, offset=offset)

    def no_converter(preset):
        raise FileNotFoundError(preset)

    hub = SimpleNamespace(
        models=SimpleNamespace(Backbone=SimpleNamespace(from_preset=lambda preset, load_weights: backbone)),
        layers=SimpleNamespace(ImageConverter=SimpleNamespace(from_preset=lambda preset: found)),
    )
    monkeypatch.setitem(sys.modules, "keras_hub", hub)
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    _, with_converter = read_backbone("keras_hub:some", "row1")
    np.testing.assert_allclose(with_converter(pixels), backbone(pixels * scale + offset), rtol=1e-5)
    hub.layers.ImageConverter.from_preset = no_converter
    _, without = read_backbone("keras_hub:some", "row1")
    np.testing.assert_allclose(without(pixels), backbone(pixels), rtol=1e-5)


def test_a_layer_of_the_models_own_goes_before_ours_of_the_same_name(tmp_path):
    pixels = keras.Input((None, None, 3))
    x = layers.Conv2D(5, 4, 4, activation="relu", name="neck")(pixels)
    path = saved(keras.Model(pixels, layers.Conv2D(6, 4, 4, activation="relu", name="last")(x)), tmp_path)
    network = of.build(path, 2, layer="last")
    names = network.preset.backbone.map_names
    assert names.count("neck") == 1 and network.features_until("neck").output.shape[-1] == 5


def test_a_description_builds_the_same_network(tmp_path):
    path = saved(chain(CHAINS["same"]), tmp_path)
    network = of.build(path, 3, layer="row3")
    assert np.all(network.backbone.get_weights()[0] == 1), "the file's weights"
    model = Model(network, ("a", "b", "c"))
    config = json.loads(json.dumps(model.config()))
    again = Model.from_config(config)
    assert again.network.preset == network.preset
    model.save_weights(tmp_path / "weights")
    again.load_weights(tmp_path / "weights")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 200, 230, 3), np.uint8)
    np.testing.assert_array_equal(model.classify(pixels)["logits"], again.classify(pixels)["logits"])


def test_the_applications_preprocessing_is_part_of_the_network():
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    for name, module in (("ResNet50", keras.applications.resnet), ("MobileNetV2", keras.applications.mobilenet_v2)):
        given = keras.Input((64, 64, 3))
        ours = keras.Model(given, pretrained._preprocessed(given, getattr(keras.applications, name)))(pixels)
        np.testing.assert_allclose(ours, module.preprocess_input(pixels.copy()), atol=1e-4)


def test_layers_by_name_give_the_maps_of_the_model(tmp_path):
    path = saved(chain(CHAINS["patches"]), tmp_path)
    network = of.build(path, 2, layer="row1")
    image = np.random.default_rng(1).integers(0, 256, (1, 176, 208, 3), np.uint8)
    (found,) = of.extract_features(network, image, layer="row0")
    expected = keras.models.load_model(path).get_layer("row0")(image.astype(np.float32))
    np.testing.assert_allclose(found, expected[0], rtol=1e-5)
    with pytest.raises(ValueError, match="did you mean 'row0'"):
        of.extract_features(network, image, layer="roow0")


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="did you mean 'MobileNetV2'"):
        of.build("MobileNetV22", 2)
    with pytest.raises(ValueError, match=r"expected a .keras file; 'nowhere.keras' is not there"):
        of.build("nowhere.keras", 2)
    (tmp_path / "broken.keras").write_bytes(b"zip?")
    with pytest.raises(ValueError, match=r"expected a Keras model in .*broken.keras"):
        of.build(str(tmp_path / "broken.keras"), 2)
    for preset in ("tiny", PRESETS["tiny"]):  # never random weights in their place
        with pytest.raises(
            ValueError, match=r"expected a backbone .* weights 'imagenet'; the preset 'tiny' has none: "
        ):
            of.build(preset, 2, weights="imagenet")
    with pytest.raises(ValueError, match="expected a backbone by its name for layer 'conv3'"):
        of.build("tiny", 2, layer="conv3")
    path = saved(chain(CHAINS["same"]), tmp_path)
    with pytest.raises(ValueError, match=r"expected a layer of .*did you mean 'row3'"):
        of.build(path, 2, layer="row33")
    with pytest.raises(ValueError, match="at a stride of 16 pixels"):
        of.build(saved(chain(CHAINS["patches"]), tmp_path), 2)
    pixels = keras.Input((32, 32, 3))
    pooled = keras.Model(pixels, layers.Dense(2, name="scores")(layers.GlobalAveragePooling2D()(pixels)))
    with pytest.raises(ValueError, match=r"expected a layer with a map .* got 'scores'"):
        of.build(saved(pooled, tmp_path), 2, layer="scores")
    with pytest.raises(ValueError, match=r"expected a layer with a map .* got "):
        of.build(saved(pooled, tmp_path), 2, layer=pooled.layers[0].name)  # the pixels
    grey = keras.Model(one := keras.Input((32, 32, 1)), layers.Conv2D(3, 3)(one))
    with pytest.raises(ValueError, match="expected a functional model of pixels"):
        of.build(saved(grey, tmp_path), 2)
    enlarged = layers.Conv2D(2, 3, name="last")(layers.UpSampling2D(name="larger")(pixels))
    with pytest.raises(ValueError, match="'larger' enlarges it"):
        of.build(saved(keras.Model(pixels, enlarged), tmp_path), 2, layer="last")
    free = keras.Input((None, None, 3))
    shared = layers.Conv2D(3, 3, name="shared")
    for layer, line in (
        (layers.Resizing(32, 32, name="resized"), "maps grow with the picture; 'resized' gives 32 cells of any"),
        (layers.Conv2D(2, 3, (2, 1), name="wide"), "rows and columns alike; 'wide' does not"),
        (lambda x: shared(shared(x)), "called once; 'last' reads another call of a shared layer"),
        (lambda x: x[:, ::2, ::2], "functions that keep a map's side; 'get_item"),
        (lambda x: keras.ops.max_pool(x, 2), "functions that keep a map's side; 'max_pool"),
    ):
        model = keras.Model(free, layers.Conv2D(2, 3, 2, name="last")(layer(free)))
        with pytest.raises(ValueError, match=line):
            of.build(saved(model, tmp_path), 2, layer="last")
    with pytest.warns(UserWarning, match="not yet been built"):
        unbuilt = saved(keras.Sequential([layers.Conv2D(2, 3)]), tmp_path)
    with pytest.raises(ValueError, match=r"functional model of pixels .* takes inputs of unknown shape"):
        of.build(unbuilt, 2)
    path = saved(chain(CHAINS["same"]), tmp_path)
    damaged = bytearray((tmp_path / "model.keras").read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    (tmp_path / "damaged.keras").write_bytes(damaged)
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as other:
        other.writestr("readme.txt", "no model")
    for name in ("damaged", "other"):
        with pytest.raises(ValueError, match=rf"expected a Keras model in .*{name}.keras'; it cannot be loaded: "):
            of.build(str(tmp_path / f"{name}.keras"), 2, layer="row3")
    (tmp_path / "junk.weights.h5").write_bytes(b"junk")
    for weights, line in (("junk.weights.h5", "file signature not found"), ("none.weights.h5", "No such file")):
        with pytest.raises(ValueError, match=rf"expected weights of .*model.keras' in .*{weights}'; .*{line}"):
            of.build(path, 2, layer="row3", weights=str(tmp_path / weights))

    def offline(*_, **__):
        raise Exception("URL fetch failure on https://storage.googleapis.com/x: None -- [Errno -2] Name not known")

    monkeypatch.setattr(inspect.getmodule(keras.applications.MobileNetV2).file_utils, "get_file", offline)
    with pytest.raises(OSError, match="expected to download the weights of MobileNetV2; URL fetch failure"):
        of.build("mobilenetv2", 2)


def test_a_backbone_scans_as_windows_do(tmp_path):
    """Coarse windows are every pool-th fine window, and a window at an offset is that of the shifted picture."""
    network = of.build(saved(chain(CHAINS["patches"]), tmp_path), 3, layer="row1")
    preset = network.preset
    rng, step = np.random.default_rng(2), preset.coarse_stride
    side = preset.smallest_input + 3 * step
    pixels = rng.uniform(0, 255, (1, side, side, 3)).astype(np.float32)
    fine, coarse = (network.as_model(fine=each)(pixels)["scores"].numpy() for each in (True, False))
    np.testing.assert_allclose(fine[:, :: preset.last_pool, :: preset.last_pool], coarse, rtol=1e-4, atol=1e-5)
    window = network.as_model(fine=False)(pixels[:, step : step + preset.window, : preset.window])["scores"]
    np.testing.assert_allclose(coarse[:, 1:2, :1], window, rtol=1e-4, atol=1e-5)


def test_from_config_reads_what_config_writes():
    backbone = KerasBackbone("plain", "row1", chain(CHAINS["patches"]).to_json())
    assert KerasBackbone.from_config(json.loads(json.dumps(backbone.config()))) == backbone


def test_custom_functions_have_to_be_imported_before_a_model_is_built():
    def wave(x):
        return keras.ops.sin(x)

    pixels = keras.Input((None, None, 3))
    model = keras.Model(pixels, layers.Conv2D(4, 4, 4, activation=wave, name="row0")(pixels))
    backbone = KerasBackbone("plain", "row0", model.to_json())
    with keras.saving.custom_object_scope({"wave": wave}):
        assert backbone.build().name == "features"
    with pytest.raises(ValueError, match="expected the custom function 'wave' of the backbone 'plain' to be"):
        KerasBackbone("plain", "row0", model.to_json()).build()


@pytest.mark.parametrize("arithmetic", ["direct", "winograd"])
def test_context_and_pcr_scan_as_the_keras_model_does(arithmetic, tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "MIN_SAVING", -1e15)  # tiles, however few windows
    monkeypatch.setattr(execution, "MIN_SPEEDUP", 0.0)
    monkeypatch.setattr("overfeat_tf.compute.dense.winograd_cost", lambda *_: 0.0)
    network = of.build(saved(chain(CHAINS["same"]), tmp_path), 3, layer="row3", context=True, per_class=True)
    scale = network.preset.scales[0]
    image = np.random.default_rng(3).integers(0, 256, (*scale, 3), np.uint8)
    expected = network.as_model()(image[None].astype(np.float32))
    (found,) = scan(network, tf.constant(image), of.InferenceOptions(scales=(1,), arithmetic=arithmetic))
    tiled = set(execution_of(network, arithmetic).sides)
    assert tiled == ({"full1", "regress1"} if arithmetic == "winograd" else set())
    np.testing.assert_allclose(found.logits, expected["scores"][0], rtol=1e-3, atol=1e-4)
    places = found.windows.numpy()  # normalised; the regressor tells boxes in window sides
    edges = expected["boxes"][0].numpy().reshape(*places.shape[:2], 3, 4)
    corner, side = places[:, :, None, :2], places[:, :, None, 2:] - places[:, :, None, :2]
    boxes = edges * np.concatenate([side, side], -1) + np.concatenate([corner, corner], -1)
    np.testing.assert_allclose(found.boxes, boxes, rtol=1e-3, atol=1e-4)


def test_a_committee_of_backbones_votes_as_its_members_on_average(tmp_path):
    path = saved(chain(CHAINS["patches"]), tmp_path)
    options, names = of.InferenceOptions(scales=(1,)), ("a", "b", "c")
    members = [Model(of.build(path, 3, layer="row1"), names, options, ("classification",)) for _ in range(2)]
    image = np.random.default_rng(4).integers(0, 256, (1, 180, 200, 3), np.uint8)
    each = [np.exp(member.classify(image)["logits"]) for member in members]
    np.testing.assert_allclose(np.exp(Model.committee(members).classify(image)["logits"]), np.mean(each, 0), rtol=1e-4)
