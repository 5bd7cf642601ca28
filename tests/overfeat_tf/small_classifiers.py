"""Two small classifiers as runs on disk; the fixture is the folder's."""

from pathlib import Path

import pytest
import tensorflow as tf

import overfeat_tf as of

LABELS = ("cat", "dog", "eel")


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory) -> list[Path]:
    """Two runs that were only trained to classify."""
    folders = []
    for seed in (1, 2):
        tf.keras.utils.set_random_seed(seed)
        network = of.build("tiny", 3)
        last = network.classifier.layers[-1]
        last.kernel.assign(last.kernel * 150)
        model = of.Model(network, LABELS, of.InferenceOptions(scales=(1, 2)), ("classification",))
        folders.append(tmp_path_factory.mktemp(f"run{seed}"))
        model.save(folders[-1], {"name": f"run{seed}", "data": "noise"})
    return folders
