"""A Keras classifier as a run: its own scores at its own size, and every window's everywhere else."""

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from keras import layers

import overfeat_tf as of
from overfeat_tf.cli.main import overfeat
from overfeat_tf.network.pretrained import classifier_preset, read_averaged

NAMES = ("cat", "dog", "owl", "fox")


def classifier(padding: str = "same", pooling: bool = True, **dense) -> keras.Model:
    pixels = x = keras.Input((64, 64, 3))
    x = layers.Rescaling(1 / 128, -1)(x)
    for number in range(3):
        x = layers.Conv2D(6, 3, 2, padding, activation="relu", name=f"conv{number}")(x)
    x = layers.GlobalAveragePooling2D(name="global_average_pooling2d")(x) if pooling else layers.Flatten()(x)
    return keras.Model(pixels, layers.Dense(len(NAMES), name="scores", **dense)(layers.Dropout(0.2)(x)))


def imports(file, labels, run):
    return CliRunner().invoke(overfeat, ["import-keras", str(file), "--labels", str(labels), "--run", str(run)])


@pytest.fixture
def imported(tmp_path):
    """A classifier, and what the verb makes of its file."""
    keras.utils.set_random_seed(3)
    model = classifier(activation="softmax")
    model.save(tmp_path / "pets.keras")
    (tmp_path / "labels.txt").write_text("\n".join(NAMES) + "\n")
    done = imports(tmp_path / "pets.keras", tmp_path / "labels.txt", tmp_path / "run")
    assert done.exit_code == 0, done.output
    return model, of.load(tmp_path / "run")


def test_a_picture_of_its_own_size_gets_its_own_scores(imported):
    model, run = imported
    preset = run.network.preset
    assert (run.labels, run.tasks, preset.window, preset.coarse_stride) == (NAMES, ("classification",), 64, 8)
    picture = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    scores = keras.ops.softmax(run.network.classifier(run.network.features(picture.astype(np.float32))))
    np.testing.assert_allclose(np.reshape(scores, (3, 4)), model(picture.astype(np.float32)), rtol=1e-4)
    centre = run.with_options(views="centre")
    shown = np.full((1, preset.shorter_side, preset.shorter_side, 3), 60, np.uint8)
    np.testing.assert_allclose(centre.classify(shown)["probs"], model(shown[:, :64, :64].astype(np.float32)), rtol=1e-4)


def test_a_sequential_model_is_as_good_as_a_functional_one(tmp_path):
    keras.utils.set_random_seed(5)
    rows = [layers.Conv2D(6, 3, 2, "same", activation="relu") for _ in range(3)]
    model = keras.Sequential([keras.Input((64, 64, 3)), *rows, layers.GlobalAveragePooling2D(), layers.Dense(4)])
    model.save(tmp_path / "pets.keras")
    (tmp_path / "labels.txt").write_text("\n".join(NAMES))
    assert imports(tmp_path / "pets.keras", tmp_path / "labels.txt", tmp_path / "run").exit_code == 0
    picture = np.random.default_rng(6).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    network = of.load(tmp_path / "run").network
    found = network.classifier(network.features(picture)).numpy()[:, 0, 0]
    np.testing.assert_allclose(found, model(picture), rtol=1e-3, atol=1e-3)
    backbone, _ = read_averaged(str(tmp_path / "pets.keras"))
    assert backbone.stride == 8


def test_a_larger_picture_gets_the_mean_of_each_windows_cells(imported):
    """An oracle by hand: the classifier's map, averaged over each window's cells, and its dense layer."""
    model, run = imported
    network, preset = run.network, run.network.preset
    side = preset.window + 3 * preset.coarse_stride
    picture = np.random.default_rng(1).uniform(0, 255, (1, side, side, 3)).astype(np.float32)
    found = network.classifier(network.features(picture)).numpy()
    assert found.shape[1] == preset.window_count(side) == 4
    body = keras.models.clone_model(
        keras.Model(model.inputs[0], model.get_layer("conv2").output), input_tensors=keras.Input((None, None, 3))
    )
    body.set_weights(model.get_weights()[:-2])
    cells = body(picture).numpy()[0]
    kernel, bias = model.get_weights()[-2:]
    for row, column in ((0, 0), (1, 3), (3, 2)):
        average = cells[row : row + 8, column : column + 8].mean(axis=(0, 1))
        np.testing.assert_allclose(found[0, row, column], average @ kernel + bias, rtol=1e-3, atol=1e-4)


def test_refusals_leave_nothing(tmp_path):
    (tmp_path / "labels.txt").write_text("\n".join(NAMES))
    (tmp_path / "few.txt").write_text("cat\ndog\n")
    activated = classifier()
    activated = keras.Model(activated.input, layers.Activation("sigmoid", name="squashed")(activated.output))
    grey = keras.Model(one := keras.Input((32, 32, 1)), layers.Dense(4)(layers.GlobalAveragePooling2D()(one)))
    cases = {
        "squashed": (activated, "labels.txt", "its last layers are .*squashed"),
        "grey": (grey, "labels.txt", "expected a functional model of pixels"),
        "flat": (classifier(pooling=False), "labels.txt", "its last layers are flatten"),
        "sigmoid": (classifier(activation="sigmoid"), "labels.txt", "linear or softmax"),
        "few": (classifier(), "few.txt", "expected 4 class names in .*few.txt', a line each; got 2"),
    }
    for name, (model, labels, message) in cases.items():
        model.save(tmp_path / f"{name}.keras")
        done = imports(tmp_path / f"{name}.keras", tmp_path / labels, tmp_path / "run")
        assert done.exit_code != 0 and not (tmp_path / "run").exists()
        with pytest.raises(ValueError, match=message):
            raise done.exception
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes").write_text("mine")
    done = imports(tmp_path / "few.keras", tmp_path / "few.txt", tmp_path / "run")
    assert "holds something already" in str(done.exception)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes"]


def test_a_network_for_classes_alone_sees_the_normalised_mean_of_a_window(tmp_path):
    keras.utils.set_random_seed(4)
    model = classifier()
    model.save(tmp_path / "pets.keras")
    backbone, weights = read_averaged(str(tmp_path / "pets.keras"))
    description = classifier_preset(backbone)
    assert (description.window, description.full, description.coarse_stride) == (64, (), 8)
    network = of.build(description, 3)
    network.backbone.set_weights(weights.get_weights())
    picture = np.random.default_rng(2).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    mean = keras.Model(model.inputs[0], model.get_layer("global_average_pooling2d").output)(picture).numpy()
    wanted = (mean - mean.mean(-1, keepdims=True)) / np.sqrt(mean.var(-1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(np.reshape(network.features(picture), wanted.shape), wanted, rtol=1e-3, atol=1e-4)
    assert network.classifier(network.features(picture)).shape == (2, 1, 1, 3)
