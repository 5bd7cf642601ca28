"""A network with what is needed to answer, its weights on disk, and the calls on a network alone."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from overfeat_tf.merge.calibration import Calibration
from overfeat_tf.models.batches import Inference
from overfeat_tf.models.predictor import Answers, Images, Loaded
from overfeat_tf.models.tasks import BY_NAME, CLASSIFICATION, DETECTION, LOCALIZATION, TASKS, Task
from overfeat_tf.network.convnet import Network, build
from overfeat_tf.network.presets import Preset
from overfeat_tf.network.pretrained import UNREADABLE
from overfeat_tf.options import InferenceOptions
from overfeat_tf.scan.features import extract

LAST = "last"  # the folder within a run's weights that holds those of the last step, where these are other ones
SPLIT = "split.json"  # in a run and in an export: which images of its data were held out, where it had one list
CONFIG = "config.json"  # in a run and in an export; its section "model" is this module's
SHARED_PRODUCT = 8  # images whose features are computed together: enough rows for the heads to run at full rate
ENCODED = tf.TensorSpec([None], tf.string)
IMAGES_SPEC = tf.TensorSpec([None, None, None, 3], tf.uint8)


@dataclass(frozen=True, repr=False)
class Model(Loaded):
    """A network with what is needed to answer.

    `predict` takes images of any kind; `detect`, `localize`, `classify` and `extract_features` give the answers of the
    exported signatures.

    Attributes:
        network: The network.
        labels: Class names.
        options: Inference options.
        tasks: What it was trained for: of classification, localization, detection.
        others: Further members of a committee (Table 2), each a network of the same classes.
        calibration: What turns `detect`'s accumulated scores into probabilities; None where it was never fitted.
    """

    network: Network
    labels: tuple[str, ...]
    options: InferenceOptions = field(default_factory=InferenceOptions)
    tasks: tuple[str, ...] = TASKS
    others: tuple[Network, ...] = ()
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if len(self.labels) != self.network.num_classes:
            raise ValueError(f"expected {self.network.num_classes} labels, one for each class; got {len(self.labels)}")
        if isinstance(self.tasks, str) or not set(self.tasks) <= set(TASKS):
            raise ValueError(f"expected a tuple of tasks, of {', '.join(TASKS)}; got {self.tasks!r}")
        for name in ("labels", "tasks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @classmethod
    def committee(cls, members: Sequence["Model"]) -> "Model":
        """Join classifiers into one whose votes are the mean of theirs (Table 2); the first one's options hold.

        Raises:
            ValueError: none, or members of other classes, or one that is no `Model` or was not trained to classify.
        """
        if not members:
            raise ValueError("expected at least one member of a committee; got none")
        first = members[0]
        for number, member in enumerate(members, start=1):
            if not isinstance(member, Model):
                raise ValueError(f"expected models of runs; member {number} is '{type(member).__name__}'")
            if member.labels != first.labels:
                raise ValueError(f"expected members of a committee to know the same classes; member {number} differs")
            if CLASSIFICATION.name not in member.tasks:
                raise ValueError(
                    f"expected classifiers; member {number} was trained for {', '.join(member.tasks) or 'nothing'}"
                )
        # Copies of the networks, sharing all but the regressors: a committee has no use for those.
        networks = [replace(network) for member in members for network in member.networks]
        return cls(networks[0], first.labels, first.options, (CLASSIFICATION.name,), tuple(networks[1:]))

    @property
    def networks(self) -> tuple[Network, ...]:
        """The network and the committee's other members."""
        return (self.network, *self.others)

    @property
    def answered_tasks(self) -> tuple[str, ...]:
        """The tasks that its calls answer: what localizes also detects, without a background class (introduction)."""
        detects = LOCALIZATION.name in self.tasks and DETECTION.name not in self.tasks
        return (*self.tasks, DETECTION.name) if detects else self.tasks

    def parts_of(self, network: Network) -> dict[str, keras.Model]:
        """Return a member's models by name, with the regressor, built if it was not, where the tasks need boxes."""
        return {**network.parts, "regressor": network.regressor} if self._has_boxes else network.parts

    @cached_property
    def inference(self) -> Inference:
        """The network's tf.functions."""
        return Inference(self.network, self.labels, self.options, self.others, self.calibration)

    def _answer(self, task: Task, images: Images) -> Answers:
        if task.has_boxes and not self._has_boxes:
            trained = ", ".join(self.tasks) or "nothing"
            raise ValueError(f"expected a model that was trained for boxes; this one was trained for {trained}")
        return super()._answer(task, images)

    def _run(self, signature: str, **inputs: np.ndarray) -> Answers:
        (value,) = inputs.values()
        if signature not in self._traced:
            spec = ENCODED if value.dtype == object else IMAGES_SPEC  # of any sizes, or each would be traced by itself
            self._traced[signature] = tf.function(getattr(self.inference, signature), [spec], autograph=False)
        tensor = tf.constant(value, tf.string if value.dtype == object else tf.uint8)
        return {key: answer.numpy() for key, answer in self._traced[signature](tensor).items()}

    def _extract(self, images: list[np.ndarray], layer: str | None, scale: int | None, fine: bool) -> list[np.ndarray]:
        if self.others:
            raise ValueError("expected one network to take features from; a committee's members each have their own")
        extract(self.network, [], layer, scale, fine)  # raises for what it does not have, even without an image
        outputs: list[np.ndarray] = []
        for first in range(0, len(images), SHARED_PRODUCT):
            some = images[first : first + SHARED_PRODUCT]
            key = (len(some), layer, scale, fine)
            if key not in self._traced:

                def run(pixels, layer=layer, scale=scale, fine=fine):
                    return extract(self.network, pixels, layer, scale, fine, self.options.arithmetic)

                specs = [tf.TensorSpec([1, None, None, 3], tf.uint8)] * len(some)
                self._traced[key] = tf.function(run, [specs], autograph=False)
            outputs += [output[0].numpy() for output in self._traced[key]([image[None] for image in some])]
        return outputs

    @cached_property
    def _traced(self) -> dict:
        return {}

    def with_options(self, **changes) -> "Model":
        """Return the same weights with other inference options."""
        return replace(self, options=replace(self.options, **changes))

    def config(self) -> dict:
        """Describe the model in JSON's types; `from_config` builds it again, without the weights."""
        return {
            **_network_config(self.network),
            "others": [_network_config(network) for network in self.others],
            "labels": list(self.labels),
            "tasks": list(self.tasks),
            "options": asdict(self.options),
            "calibration": self.calibration and self.calibration.config(),
        }

    @classmethod
    def from_config(cls, config: Mapping, weights: bool = True) -> "Model":
        """Build a model from `config`, with fresh weights or, to be loaded, without.

        Raises:
            ValueError: it is not what `config` gives.
        """
        try:
            networks = [_build(each, weights) for each in (config, *config.get("others", ()))]
            options = InferenceOptions(**config["options"])
            calibration = Calibration.from_config(config.get("calibration"))  # not in the first runs
            labels, tasks = tuple(config["labels"]), tuple(config["tasks"])
            return cls(networks[0], labels, options, tasks, tuple(networks[1:]), calibration)
        except (KeyError, TypeError) as error:
            raise ValueError(f"expected the configuration of a model; it is damaged: {error}") from None

    def save(self, run: str | Path, training: Mapping | None = None) -> None:
        """Write the folder of a run, which `load`, `overfeat export` and the other commands take.

        The folder appears under its name once it is complete, and what a broken attempt left is removed.

        Args:
            run: The folder, new or empty.
            training: What the model was trained on and how, in JSON's types, for the model card: "name", "data" ...

        Raises:
            ValueError: the folder holds something.
        """
        run = Path(run).resolve()
        require_new(run)
        staging_dir = run.with_name(f".{run.name}.partial")
        shutil.rmtree(staging_dir, ignore_errors=True)
        try:
            self.save_weights(staging_dir / "weights")
            config = {"model": self.config(), "training": dict(training or {})}
            (staging_dir / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
            staging_dir.rename(run)
        finally:
            shutil.rmtree(staging_dir, ignore_errors=True)

    def save_weights(self, folder: Path) -> None:
        """Write each part's weights into a folder, replacing what is there."""
        for home, network in self._folders(folder):
            home.mkdir(parents=True, exist_ok=True)
            for part, model in self.parts_of(network).items():
                model.save_weights(home / f"{part}.weights.h5")

    def load_weights(self, folder: Path) -> None:
        """Read what `save_weights` wrote.

        Raises:
            ValueError: a file is missing, damaged or of another network.
        """
        for home, network in self._folders(folder):
            if self._has_boxes or (home / "regressor.weights.h5").is_file():
                network.blank_regressor()
            for part, model in network.parts.items():
                path = home / f"{part}.weights.h5"
                try:
                    model.load_weights(path)
                except UNREADABLE as error:
                    line = str(error).partition("\n")[0]
                    raise ValueError(f"expected the weights of this network's {part} in '{path}'; {line}") from None

    @property
    def _has_boxes(self) -> bool:
        return any(BY_NAME[task].has_boxes for task in self.tasks)

    def _folders(self, folder: Path) -> list[tuple[Path, Network]]:
        """Return each member of a committee with its folder; that of the first is the folder itself."""
        others = [(folder / f"member{number}", network) for number, network in enumerate(self.others, start=2)]
        return [(folder, self.network), *others]


def require_new(run: Path) -> None:
    """Raise ValueError unless a run's folder is new or empty."""
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ValueError(f"expected a new or empty folder for the run; '{run}' holds something already")


def _network_config(network: Network) -> dict:
    return {
        "preset": network.preset.config(),
        "num_classes": network.num_classes,
        "background": network.background,
        "per_class": network.per_class,
        "box_form": network.box_form,
        "context": network.context,
    }


def _build(config: Mapping, weights: bool) -> Network:
    preset = Preset.from_config(config["preset"])
    later = {key: config[key] for key in ("per_class", "box_form", "context") if key in config}  # not in the first runs
    return build(preset, config["num_classes"], config["background"], weights=weights, **later)


def classify(network: Network, images: Images, options: InferenceOptions | None = None) -> Answers:
    """Classify images by the votes of all windows, scales and flips (3.3).

    Args:
        network: See `detect`.
        images: See `detect`.
        options: See `detect`.

    Returns:
        For pixels "logits" and "probs", float32 [B, classes]. For encoded images the top k: "classes" string [B, k],
        the numbers of the classes as text, "scores" float32 [B, k], falling, and "status" string [B], empty where the
        image could be read.

    Raises:
        ValueError: images of another kind.
    """
    return _model(network, options).classify(images)


def localize(network: Network, images: Images, options: InferenceOptions | None = None) -> Answers:
    """Return the top k classes of each image, a box each (4).

    Args:
        network: See `detect`.
        images: See `detect`.
        options: See `detect`.

    Returns:
        What `detect` returns, with N = k: the classes by falling score, each with its best merged box.

    Raises:
        ValueError: images of another kind.
    """
    return _model(network, options).localize(images)


def detect(network: Network, images: Images, options: InferenceOptions | None = None) -> Answers:
    """Find all objects (4.3, 5): confident windows vote for boxes, which are merged and accumulate their scores.

        found = overfeat_tf.detect(network, [open("photo.jpg", "rb").read()])
        count = int(found["num_detections"][0])
        boxes, scores = found["detection_boxes"][0, :count], found["detection_scores"][0, :count]

    `load(...).predict` answers in pixels and names, and takes files too.

    Args:
        network: What `build` returns; its weights are those that it has.
        images: uint8 [B, H, W, 3]; or a list of uint8 [H, W, 3] of any sizes; or a list of encoded images (bytes: JPEG,
            PNG, GIF, BMP, WebP). Pixels are RGB.
        options: Inference options, such as `InferenceOptions(scales=(1, 2), max_detections=20)`;
            `InferenceOptions()` if left out.

    Returns:
        Numpy arrays, by the names of the TensorFlow Object Detection API, for B images and N = `max_detections`:

        - "detection_boxes" float32 [B, N, 4]: [ymin, xmin, ymax, xmax], normalised to 0..1 in the image as displayed;
        - "detection_scores" float32 [B, N]: falling, in 0..1; 0 in padding;
        - "detection_classes" float32 [B, N]: the class's number from 1; 0 in padding;
        - "detection_class_entities" string [B, N]: its name, here its number from 0 as text;
        - "num_detections" float32 [B]: how many are not padding;
        - "image_size" int32 [B, 2]: height and width in pixels;
        - "status" string [B]: empty where the image could be read, else why not.

    Raises:
        ValueError: images of another kind.
    """
    return _model(network, options).detect(images)


def extract_features(
    network: Network, images: Images, layer: str | None = None, scale: int | None = None, fine: bool = False
) -> list[np.ndarray]:
    """Compute a layer's output for each image (3.2).

    Args:
        network: What `build` returns.
        images: uint8 [B, H, W, 3], or a list of uint8 [H, W, 3] of any sizes. Pixels are RGB.
        layer: A layer's name, as `overfeat info` prints it; the second full layer before its rectifier if left out.
        scale: Number of the scale to show the images at, from 1; native size if left out.
        fine: Fine stride rather than coarse.

    Returns:
        For each image float32 [h, w, C].

    Raises:
        ValueError: images of another kind, or no such layer or scale.
    """
    return _model(network, None).extract_features(images, layer, scale, fine)


def _model(network: Network, options: InferenceOptions | None) -> Model:
    """Return a network's `Model` with some options; the network keeps it, so that a loop over images traces once."""
    if not isinstance(network, Network):
        raise ValueError(
            f"expected a network, as overfeat_tf.build returns it; got '{type(network).__name__}': what "
            "overfeat_tf.load returns answers by its own methods, such as model.detect(images)"
        )
    options = options or InferenceOptions()
    found = next((model for model in network.models if model.options == options), None)
    if found is None:
        found = Model(network, tuple(str(i) for i in range(network.num_classes)), options)
        network.models.append(found)
    return found
