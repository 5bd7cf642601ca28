"""A model with its weights on disk and back, and the public calls on it."""

import gc
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import overfeat_tf as of
from overfeat_tf.models.batches import Inference
from overfeat_tf.models.loading import read_config
from overfeat_tf.network.presets import Preset

OPTIONS = of.InferenceOptions(scales=(1, 2), min_score=0.0, max_windows=30, max_detections=5)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 48, 60, 3), np.uint8)
PNGS = [tf.io.encode_png(image).numpy() for image in IMAGES]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(2)
    network = of.build("tiny", 3, background=True)
    network.classifier.layers[-1].kernel.assign(network.classifier.layers[-1].kernel * 50)
    network.regressor.layers[-1].bias.assign([0.1, 0.1, 0.9, 0.9])
    return of.Model(network, ("ant", "bee", "cow"), OPTIONS, ("classification", "detection"))


@pytest.fixture
def run(model, tmp_path):
    """Writes what a run leaves."""
    model.save_weights(tmp_path / "run" / "weights")
    (tmp_path / "run" / "config.json").write_text(json.dumps({"model": model.config(), "training": {"steps": 1}}))
    return tmp_path / "run"


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if value.dtype == object:
            assert found[key].tolist() == value.tolist()
        else:
            np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-5, err_msg=key)


def test_a_run_loads_as_it_was_saved(model, run):
    loaded = of.load(run)
    assert isinstance(loaded, of.Model)
    assert (loaded.labels, loaded.options, loaded.tasks) == (model.labels, model.options, model.tasks)
    assert (loaded.network.preset, loaded.network.background) == (model.network.preset, True)
    expected = model.detect(IMAGES)
    assert expected["num_detections"].min() >= 1
    assert_equal(loaded.detect(IMAGES), expected)
    assert of.load(str(run)).config() == loaded.config()
    for ours, theirs in zip(loaded.extract_features(IMAGES), model.extract_features(IMAGES), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_configuration_survives_json(model):
    every = of.Model(model.network, model.labels, of.InferenceOptions(flips=True, top_k=1))  # scales: None
    for one in (model, every):
        config = json.loads(json.dumps(one.config()))
        assert of.Model.from_config(config).config() == one.config()
        assert of.Model.from_config(config).options == one.options


def test_a_run_of_an_earlier_version_loads():
    folder = Path(__file__).with_name("old_run")  # written before networks described themselves
    model, config = of.load(folder), json.loads((folder / "config.json").read_text())
    again = json.loads(json.dumps(model.config()))
    later = again["options"].keys() - config["model"]["options"].keys()  # options that there were not yet
    assert all(getattr(of.InferenceOptions(), name) == again["options"].pop(name) for name in later)
    assert again | {"preset": None} == config["model"] | {"preset": None}
    assert Preset.from_config(again["preset"]) == Preset.from_config(config["model"]["preset"]) == model.network.preset
    for part, built in model.network.parts.items():
        with h5py.File(folder / "weights" / f"{part}.weights.h5") as file:
            saved = [
                file["layers"][name]["vars"][i][:] for name in sorted(file["layers"]) for i in "01" if "conv" in name
            ]
        assert len(saved) == len(built.weights) == {"features": 4}.get(part, 6)
        for ours, theirs in zip(built.get_weights(), saved, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert model.detect(IMAGES)["detection_boxes"].shape == (2, 3, 4)


def test_a_loop_over_images_traces_once_and_a_network_keeps_no_model_alive():
    network = of.build("tiny", 2)
    for _ in range(3):
        of.classify(network, IMAGES, of.InferenceOptions(scales=(1,)))
        of.classify(network, IMAGES, of.InferenceOptions(scales=[1]))
    (one,) = network.models
    assert one._traced["classify_images"].experimental_get_tracing_count() == 1
    alive = [weakref.ref(one), weakref.ref(network)]
    del one, network
    gc.collect()
    assert [each() for each in alive] == [None, None]


def damage(run, **changes):
    """Change entries of the configuration's model, or strike them out where None."""
    config = json.loads((run / "config.json").read_text())
    config["model"] = {key: value for key, value in {**config["model"], **changes}.items() if value is not None}
    (run / "config.json").write_text(json.dumps(config))


def cut(path, length=5000):
    path.write_bytes(path.read_bytes()[:length])


DAMAGES = {
    "no folder": (shutil.rmtree, "is not there"),
    "no weights": (lambda run: shutil.rmtree(run / "weights"), "no weights yet"),
    "no config": (lambda run: (run / "config.json").unlink(), "has no config.json"),
    "half a config": (lambda run: cut(run / "config.json", 99), "expected JSON in .*config.json"),
    "no text": (lambda run: (run / "config.json").write_bytes(b"\xff\xfe\0"), "expected JSON in .*config.json"),
    "another JSON": (lambda run: (run / "config.json").write_text("[1]"), "section 'model' in .*config.json"),
    "no labels": (lambda run: damage(run, labels=None), "configuration of a model; .*labels"),
    "unknown option": (lambda run: damage(run, options={"scales": None, "speed": 9}), "configuration.*speed"),
    "a part missing": (lambda run: (run / "weights" / "regressor.weights.h5").unlink(), "regressor in .*No such file"),
    "a part cut off": (lambda run: cut(run / "weights" / "features.weights.h5"), "features in .*truncated"),
    "other classes": (lambda run: damage(run, num_classes=5, labels=list("abcde")), "this network's classifier in"),
    "no section": (lambda run: (run / "config.json").write_text('{"model": null}'), "section 'model' in"),
    "a bad SavedModel": (lambda run: (run / "saved_model.pb").write_bytes(b"junk"), "SavedModel in .*is damaged"),
}


@pytest.mark.filterwarnings("ignore:Skipping nested container")  # Keras, before it refuses another network's weights
@pytest.mark.parametrize("name", DAMAGES)
def test_a_missing_or_damaged_folder_is_one_clear_line(run, name):
    do_damage, line = DAMAGES[name]
    do_damage(run)
    with pytest.raises(ValueError, match=line) as caught:
        of.load(run)
    assert "\n" not in str(caught.value)
    assert str(run) in str(caught.value) or "configuration" in line


def test_a_configuration_is_read_with_all_its_sections(run):
    assert read_config(run)["training"] == {"steps": 1}


def test_the_public_calls_answer_by_the_contracts_names(model):
    boxes = {f"detection_{name}" for name in ("boxes", "scores", "classes", "class_entities")}
    boxes |= {"num_detections", "image_size", "status"}
    found = of.detect(model.network, IMAGES, OPTIONS)
    assert found.keys() == boxes
    assert found["detection_boxes"].shape == (2, 5, 4) and found["detection_boxes"].dtype == np.float32
    assert found["image_size"].tolist() == [[48, 60]] * 2 and found["status"].tolist() == [b""] * 2
    assert of.localize(model.network, PNGS, OPTIONS).keys() == boxes
    assert {k: v.shape for k, v in of.classify(model.network, IMAGES, OPTIONS).items()} == {
        "logits": (2, 3),
        "probs": (2, 3),
    }
    assert {k: v.shape for k, v in of.classify(model.network, PNGS, OPTIONS).items()} == {
        "classes": (2, 3),
        "scores": (2, 3),
        "status": (2,),
    }
    features = of.extract_features(model.network, IMAGES)
    assert [f.shape for f in features] == [(3, 4, 128)] * 2  # (48 - 32) / 8 + 1, (60 - 32) / 8 + 1
    assert set(of.__all__) == {name for name in of.__all__ if getattr(of, name) is not None}
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        of.nonsense  # noqa: B018


def test_pixels_and_encoded_images_are_answered_alike(model):
    expected = model.detect(IMAGES)
    assert_equal(model.detect(PNGS), expected)
    assert_equal(model.detect(list(IMAGES)), expected)
    assert_equal(model.detect(tuple(PNGS)), expected)
    other = IMAGES[1, :40, :33]  # a list may mix sizes
    mixed = model.detect([IMAGES[0], other])
    assert mixed["image_size"].tolist() == [[48, 60], [40, 33]]
    assert_equal({key: value[:1] for key, value in mixed.items()}, {key: value[:1] for key, value in expected.items()})
    assert_equal({key: value[1:] for key, value in mixed.items()}, model.detect(other[None]))


def test_no_images_have_no_answers(model):
    assert model.detect([])["detection_boxes"].shape == (0, 5, 4)
    assert model.localize(IMAGES[:0])["detection_boxes"].shape == (0, 3, 4)
    assert model.classify(IMAGES[:0])["probs"].shape == (0, 3)
    assert model.extract_features([]) == []


@pytest.mark.parametrize(
    "images",
    [
        IMAGES / np.float32(255),  # a cast would make them black without a word
        IMAGES.astype(np.int64),
        [IMAGES[0] / 255],
        IMAGES[0],
        IMAGES[..., 0],
        IMAGES[..., :1],
        [IMAGES[0, ..., 0]],
        [*PNGS, IMAGES[0]],
        [IMAGES[0], *PNGS],
        PNGS[0],
        "picture.png",
        ["picture.png"],
        None,
    ],
    ids=lambda images: str(getattr(images, "dtype", type(images).__name__)),
)
def test_what_is_no_image_is_refused(model, images):
    for call in (model.detect, model.extract_features):
        with pytest.raises(ValueError, match=r"^expected (images of )?uint8 .*; got "):
            call(images)


def test_what_is_no_network_and_what_does_not_fit_it_is_refused(model, tmp_path):
    for call in (of.detect, of.localize, of.classify, of.extract_features):
        with pytest.raises(ValueError, match=r"^expected a network, as overfeat_tf.build returns it; got 'Model': "):
            call(model, IMAGES)
    for changes, line in (
        ({"labels": ("ant", "bee")}, "expected 3 labels, one for each class; got 2"),
        ({"tasks": "detection"}, "expected a tuple of tasks, of classification, .*; got 'detection'"),
        ({"tasks": ("detect",)}, r"got \('detect',\)"),
    ):
        with pytest.raises(ValueError, match=line):
            replace(model, **changes)
    with pytest.raises(ValueError, match=r"expected a task that the model answers, .*; got '0.5'"):
        model.predict(IMAGES[0], 0.5)
    for preset, classes, line in (
        (None, 2, "expected the name of a preset or of a backbone, or a Preset; got 'NoneType'"),
        (Path("nowhere.keras"), 2, "'nowhere.keras' is not there"),
        ("tiny", 2.0, "expected a whole number of classes; got 2.0"),
    ):
        with pytest.raises(ValueError, match=line):
            of.build(preset, classes)


def test_a_model_of_numpys_numbers_is_saved(tmp_path):
    one = np.int64(1)
    network = of.build("tiny", one + 1)
    options = of.InferenceOptions(scales=(one,), top_k=one, min_score=np.float32(0.5), flips=np.True_)
    of.Model(network, np.array(["a", "b"]), options).save(tmp_path / "run")
    loaded = of.load(tmp_path / "run")
    expected = of.InferenceOptions(scales=(1,), top_k=1, min_score=0.5, flips=True)
    assert loaded.labels == ("a", "b") and loaded.options == expected


def test_a_classifier_finds_no_boxes(model):
    classifier = replace(model, tasks=("classification",))
    for call in (classifier.detect, classifier.localize):
        with pytest.raises(ValueError, match=r"expected a model that was trained for boxes; .* for classification"):
            call(IMAGES)
    assert classifier.classify(tf.constant(IMAGES))["probs"].shape == (2, 3)


def test_with_options_keeps_the_weights(model):
    coarse = model.with_options(max_detections=2, fine=False)
    assert coarse.network is model.network and coarse.options.scales == OPTIONS.scales
    assert coarse.detect(IMAGES)["detection_boxes"].shape == (2, 2, 4)
    assert model.detect(IMAGES)["detection_boxes"].shape == (2, 5, 4)


class OneSignature(tf.Module):
    """A SavedModel with one signature, enough for `load` to find."""

    def __init__(self, inference):
        super().__init__()
        self.parts = [inference.network.features, inference.network.classifier, inference.network.regressor]
        self.detect_images = tf.function(
            inference.detect_images, [tf.TensorSpec([None, None, None, 3], tf.uint8, "images")], autograph=False
        )


def test_load_finds_a_saved_model_and_its_newest_version(model, tmp_path):
    module = OneSignature(Inference(model.network, model.labels, OPTIONS))
    tf.saved_model.save(module, str(tmp_path / "9"), {"detect_images": module.detect_images})
    shutil.copytree(tmp_path / "9", tmp_path / "10")
    for version, classes in ((9, model.labels), (10, ("x", "y", "z"))):
        folder = tmp_path / str(version)
        (folder / "config.json").write_text(json.dumps({"model": {**model.config(), "labels": classes}}))
    (tmp_path / "11").mkdir()  # a version that is not there yet
    newest, older = of.load(tmp_path), of.load(tmp_path / "9")
    assert isinstance(newest, of.Exported) and newest.labels == ("x", "y", "z")
    assert_equal(older.detect(IMAGES), model.detect(IMAGES))
    with pytest.raises(ValueError, match=r"expected .* signature 'localize_images'; this one has detect_images"):
        newest.localize(IMAGES)
    data = tmp_path / "9" / "variables" / "variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"expected a SavedModel in .*; it is damaged"):
        of.load(tmp_path / "9")
    for path, line in (("nowhere", "is not there"), ("9/saved_model.pb", "is a file")):
        with pytest.raises(ValueError, match=line):
            of.load(tmp_path / path)
