"""A trained model, wherever its weights are: fresh, in a run's folder, or in a SavedModel."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import tensorflow as tf

from overfeat_tf.inference import Inference
from overfeat_tf.network import Network, build
from overfeat_tf.options import InferenceOptions
from overfeat_tf.presets import Conv, Preset

TASKS = ("classification", "localization", "detection")
CONFIG = "config.json"  # in a run and in an export; its section "model" is this module's
PARTS = ("features", "classifier", "regressor")

Images = np.ndarray | Sequence[np.ndarray] | Sequence[bytes]
Answers = dict[str, np.ndarray]


class Callables:
    """The four inference calls over whatever `_call` reaches; images may be encoded or pixels, of any sizes.

    `images` is uint8 [B, H, W, 3], or a list of uint8 [H, W, 3] of any sizes, or a list of encoded images (bytes).
    Answers are numpy arrays by the contract's names, the batch first.
    """

    def detect(self, images: Images) -> Answers:
        """Find all objects: boxes by falling accumulated score (4.3, 5); see `Inference.box_outputs`."""
        return self._answer("detect", "detect_images", "image_bytes", images)

    def localize(self, images: Images) -> Answers:
        """Give the top k classes, a box each (4); see `Inference.box_outputs`."""
        return self._answer("localize", "localize_images", "image_bytes", images)

    def classify(self, images: Images) -> Answers:
        """Vote over windows, scales and flips (3.3).

        Returns "logits" and "probs" [B, classes] for pixels, "classes" and "scores" [B, K] for encoded images.
        """
        return self._answer("classify", "classify_images", "inputs", images)

    def extract_features(self, images: Images) -> list[np.ndarray]:
        """Compute the second full layer before its rectifier, native size, coarse stride (3.2): [h, w, C] each."""
        return [
            self._call("extract_features", images=_pixels(np.asarray(image)[None]))["features"][0] for image in images
        ]

    def _answer(self, encoded: str, pixels: str, name: str, images: Images) -> Answers:
        if isinstance(images, np.ndarray) and images.ndim == 4:
            return self._call(pixels, images=_pixels(images))
        if isinstance(images, bytes | str | np.ndarray) or not isinstance(images, Sequence):
            raise ValueError(f"expected uint8 [B, H, W, 3], or a list of images or of bytes; got {_describe(images)}")
        if all(isinstance(image, bytes) for image in images):
            return self._call(encoded, **{name: np.array(list(images), object)})
        rows = [self._call(pixels, images=_pixels(np.asarray(image)[None])) for image in images]
        return {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}

    def _call(self, signature: str, **inputs: np.ndarray) -> Answers:
        raise NotImplementedError


@dataclass(frozen=True)
class Model(Callables):
    """A network with what is needed to answer.

    Attributes:
        network: The network.
        labels: Class names.
        options: Inference options.
        tasks: What it was trained for: of classification, localization, detection.
    """

    network: Network
    labels: tuple[str, ...]
    options: InferenceOptions = field(default_factory=InferenceOptions)
    tasks: tuple[str, ...] = TASKS

    @cached_property
    def inference(self) -> Inference:
        """The network's tf.functions."""
        return Inference(self.network, self.labels, self.options)

    def _call(self, signature: str, **inputs: np.ndarray) -> Answers:
        if signature not in self._traced:
            self._traced[signature] = tf.function(
                getattr(self.inference, signature), autograph=False, reduce_retracing=True
            )
        (value,) = inputs.values()
        tensor = tf.constant(value, tf.string if value.dtype == object else tf.uint8)
        return {key: answer.numpy() for key, answer in self._traced[signature](tensor).items()}

    @cached_property
    def _traced(self) -> dict:
        return {}

    def with_options(self, **changes) -> "Model":
        """Return the same weights with other inference options."""
        return replace(self, options=replace(self.options, **changes))

    def config(self) -> dict:
        """Describe the model in JSON's types; `from_config` builds it again, without the weights."""
        return {
            "preset": asdict(self.network.preset),
            "num_classes": self.network.num_classes,
            "background": self.network.background,
            "labels": list(self.labels),
            "tasks": list(self.tasks),
            "options": asdict(self.options),
        }

    @classmethod
    def from_config(cls, config: Mapping) -> "Model":
        """Build a model with fresh weights from `config`.

        Raises:
            ValueError: it is not what `config` gives.
        """
        try:
            network = build(_preset(config["preset"]), config["num_classes"], config["background"])
            options = {**config["options"], "scales": _tuples(config["options"]["scales"])}
            return cls(network, tuple(config["labels"]), InferenceOptions(**options), tuple(config["tasks"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"expected the configuration of a model; it is damaged: {error}") from None

    def save_weights(self, folder: Path) -> None:
        """Write each part's weights into a folder, replacing what is there."""
        folder.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            getattr(self.network, part).save_weights(folder / f"{part}.weights.h5")

    def load_weights(self, folder: Path) -> None:
        """Read what `save_weights` wrote.

        Raises:
            ValueError: a file is missing, damaged or of another network.
        """
        for part in PARTS:
            path = folder / f"{part}.weights.h5"
            try:
                getattr(self.network, part).load_weights(path)
            except (OSError, ValueError) as error:
                line = str(error).partition("\n")[0]
                raise ValueError(f"expected the weights of this network's {part} in '{path}'; {line}") from None


class Exported(Callables):
    """A SavedModel, run by its signatures alone.

    Attributes:
        labels: Class names.
        tasks: What it was trained for.
    """

    def __init__(self, folder: Path):
        config = read_config(folder)["model"]
        self.labels, self.tasks = tuple(config["labels"]), tuple(config["tasks"])
        try:
            self._loaded = tf.saved_model.load(str(folder))
        except OSError as error:
            raise ValueError(f"expected a SavedModel in '{folder}'; it is damaged: {error}") from None

    def _call(self, signature: str, **inputs: np.ndarray) -> Answers:
        if signature not in self._loaded.signatures:
            known = ", ".join(sorted(self._loaded.signatures))
            raise ValueError(f"expected a model with the signature '{signature}'; this one has {known}")
        if signature == "classify":
            inputs = {"inputs": np.array([_example(data) for data in inputs["inputs"]], object)}
        tensors = {k: tf.constant(v, tf.string if v.dtype == object else tf.uint8) for k, v in inputs.items()}
        return {key: answer.numpy() for key, answer in self._loaded.signatures[signature](**tensors).items()}


def load_run(folder: Path) -> Model:
    """Load a run's folder.

    Raises:
        ValueError: there is none, or it has no weights yet.
    """
    if not (folder / "weights").is_dir():
        raise ValueError(f"expected the folder of a run or of a SavedModel; got '{folder}', which has no weights yet")
    model = Model.from_config(read_config(folder)["model"])
    model.load_weights(folder / "weights")
    return model


def load(folder: str | Path) -> Model | Exported:
    """Load a run's folder or a SavedModel's version folder (or its parent: the newest version).

    Raises:
        ValueError: neither is there.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file() and folder.is_dir():
        versions = sorted((d for d in folder.iterdir() if d.name.isdigit()), key=lambda d: int(d.name))
        folder = versions[-1] if versions else folder
    return Exported(folder) if (folder / "saved_model.pb").is_file() else load_run(folder)


def read_config(folder: Path) -> dict:
    """Read a run's or an export's configuration.

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
    if not isinstance(config, dict) or "model" not in config:
        raise ValueError(f"expected a section 'model' in '{path}'; there is none")
    return config


def _preset(values: Mapping) -> Preset:
    rows = {key: _tuples(value) for key, value in values.items() if key != "convs"}
    return Preset(convs=tuple(Conv(**row) for row in values["convs"]), **rows)


def _tuples(value):
    return (
        tuple(_tuples(item) for item in value) if isinstance(value, Iterable) and not isinstance(value, str) else value
    )


def _example(data: bytes) -> bytes:
    feature = {"image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))}
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def _pixels(images: np.ndarray) -> np.ndarray:
    """Let uint8 [B, H, W, 3] pass; a cast would turn 0..1 into black without a word."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"expected images of uint8 [H, W, 3]; got a batch of {_describe(images)}")
    return images


def _describe(images: object) -> str:
    return f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
