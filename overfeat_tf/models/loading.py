"""Trained models from disk: the folder of a run, or a SavedModel."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import tensorflow as tf

from overfeat_tf.images.files import image_example
from overfeat_tf.models.model import CONFIG, LAST, Model
from overfeat_tf.models.predictor import Answers, Loaded
from overfeat_tf.models.tasks import CLASSIFICATION

# Keys of configurations by the names that earlier versions wrote them under, and their values likewise.
RENAMED_KEYS = {"rate": "learning_rate", "backbone_rate": "backbone_multiplier", "whole": "whole_image"}
RENAMED_VALUES = {"box_form": {"centre_size": "center_size"}, "arithmetic": {"transformed": "winograd"}}


class Exported(Loaded):
    """A SavedModel, run by its signatures alone.

    Attributes:
        labels: Class names.
        tasks: What it was trained for.
    """

    def __init__(self, folder: Path):
        config = self._config = read_config(folder)["model"]
        try:
            self.labels, self.tasks = tuple(config["labels"]), tuple(config["tasks"])
            self._loaded = tf.saved_model.load(str(folder))
        except (OSError, KeyError, IndexError, tf.errors.OpError) as error:  # IndexError of a file that is cut short
            raise ValueError(f"expected a SavedModel in '{folder}'; it is damaged: {error}") from None

    def config(self) -> dict:
        """Describe the model that was exported, as `Model.config` does."""
        return self._config

    def _run(self, signature: str, **inputs: np.ndarray) -> Answers:
        if signature not in self._loaded.signatures:
            known = ", ".join(sorted(self._loaded.signatures))
            raise ValueError(f"expected a model with the signature '{signature}'; this one has {known}")
        if signature == CLASSIFICATION.call:
            inputs = {
                "inputs": np.array([image_example(data).SerializeToString() for data in inputs["inputs"]], object)
            }
        (value,) = inputs.values()
        answers = self.call(signature, tf.constant(value, tf.string if value.dtype == object else tf.uint8))
        return {key: answer.numpy() for key, answer in answers.items()}

    def call(self, signature: str, batch: tf.Tensor) -> dict[str, tf.Tensor]:
        """Answer a batch of a signature's own input by its outputs' names."""
        return self._loaded.signatures[signature](batch)


def load_run(folder: Path, last: bool = False) -> Model:
    """Load a run's folder.

    Args:
        folder: The run.
        last: Whether to take the weights of the last step rather than the best ones; scores of detections are then not
            calibrated, unless both are the same.

    Raises:
        ValueError: there is none, or it has no weights yet.
    """
    if not (folder / "weights").is_dir():
        problem = "has no weights yet" if folder.is_dir() else "is a file" if folder.exists() else "is not there"
        raise ValueError(f"expected the folder of a run or of a SavedModel; got '{folder}', which {problem}")
    model = Model.from_config(read_config(folder)["model"], weights=False)
    if last and (folder / "weights" / LAST).is_dir():
        model.load_weights(folder / "weights" / LAST)
        return replace(model, calibration=None)
    model.load_weights(folder / "weights")
    return model


def load(folder: str | Path, last: bool = False) -> Model | Exported:
    """Load a trained model: the folder of a run, or of a SavedModel.

        model = overfeat_tf.load("runs/mine")
        model.summary()
        model.predict("photo.jpg")           # also many, and bytes, PIL images and arrays

    Args:
        folder: A run's folder, a SavedModel's version folder, or the folder of its versions, of which the newest is
            loaded.
        last: Take a run's weights of its last step rather than its best ones.

    Returns:
        A `Model` of a run, whose `network` and options can be reached, or an `Exported` of a SavedModel. Both have
        `labels`, `tasks`, `predict`, `detect`, `localize`, `classify`, `extract_features` and `summary`.

    Raises:
        ValueError: neither is there, it is damaged, or a SavedModel is asked for its last weights.
    """
    folder = find_model(folder)
    if not (folder / "saved_model.pb").is_file():
        return load_run(folder, last)
    if last:
        raise ValueError(f"expected a run with --last; '{folder}' is a SavedModel, which has one set of weights")
    return Exported(folder)


def find_model(folder: str | Path) -> Path:
    """Return the folder itself, or its newest version's if it is the parent of versions."""
    folder = Path(folder)
    if (folder / CONFIG).is_file() or not folder.is_dir():
        return folder
    versions = [
        each
        for each in folder.iterdir()
        if each.name.isascii() and each.name.isdecimal() and (each / "saved_model.pb").is_file()
    ]
    return max(versions, key=lambda each: int(each.name), default=folder)


def read_config(folder: Path) -> dict:
    """Read a run's or an export's configuration, with the names of this version.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"expected the folder of a run or of a SavedModel; '{folder}' has no {CONFIG}") from None
    except ValueError as error:  # no JSON, or no text
        raise ValueError(f"expected JSON in '{path}'; it is damaged: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise ValueError(f"expected a section 'model' in '{path}'; there is none")
    return _renamed(config)


def _renamed(section: dict) -> dict:
    found = {}
    for key, value in section.items():
        if isinstance(value, dict):
            value = _renamed(value)
        elif isinstance(value, str):
            value = RENAMED_VALUES.get(key, {}).get(value, value)
        found[RENAMED_KEYS.get(key, key)] = value
    return found
