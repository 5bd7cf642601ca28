"""Keras saves a network as one file, and loads it again, in another program too."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import overfeat_tf as of

CODE = """
import sys, keras, overfeat_tf, numpy as np
loaded = keras.models.load_model(sys.argv[1])
given = np.load(sys.argv[2])
for name, output in loaded(given["pixels"]).items():
    np.testing.assert_allclose(output, given[name], rtol=1e-5, atol=1e-5)
"""


def backbone(folder) -> str:
    """Save a small Keras model of stride 8, with SAME padding and a batch normalisation, as a `.keras` file."""
    x = pixels = keras.Input((None, None, 3))
    for number in range(3):
        x = layers.Conv2D(4, 3, 2, "same", activation="relu", name=f"row{number}")(x)
    model = keras.Model(pixels, layers.BatchNormalization(name="last")(x))
    model.save(folder / "backbone.keras")
    return str(folder / "backbone.keras")


@pytest.mark.parametrize(
    "options", [{}, {"context": True, "per_class": True, "background": True}], ids=["plain", "all"]
)
@pytest.mark.parametrize("kind", ["tiny", "backbone"])
def test_a_saved_network_loads_with_equal_outputs(kind, options, tmp_path):
    name, layer = (backbone(tmp_path), "last") if kind == "backbone" else (kind, None)
    network = of.build(name, 3, layer=layer, **options)
    whole = network.as_model()
    side = network.preset.smallest_input + 13
    pixels = np.random.default_rng(0).uniform(0, 255, (2, side, side + 9, 3)).astype(np.float32)
    expected = whole(pixels)
    whole.save(tmp_path / "w.keras")
    found = keras.models.load_model(tmp_path / "w.keras")(pixels)
    assert found.keys() == expected.keys() == {"scores", "boxes"}
    for name, output in expected.items():
        np.testing.assert_array_equal(found[name], output)


@pytest.mark.long
def test_a_program_that_imports_keras_and_then_us_loads_it(tmp_path):
    network = of.build("tiny", 2, context=True)
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 60, 70, 3)).astype(np.float32)
    whole = network.as_model()
    whole.save(tmp_path / "w.keras")
    np.savez(tmp_path / "given.npz", pixels=pixels, **{key: value.numpy() for key, value in whole(pixels).items()})
    command = [sys.executable, "-c", CODE, str(tmp_path / "w.keras"), str(tmp_path / "given.npz")]
    subprocess.run(command, check=True)
