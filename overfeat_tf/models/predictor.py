"""The inference calls, the same for a network in memory, a SavedModel and a server."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import cast

import numpy as np
import tensorflow as tf
from PIL import Image

from overfeat_tf.arguments import suggest
from overfeat_tf.images.decode import decode_image
from overfeat_tf.images.files import DAMAGED_ERRORS, as_pixels, decodable, describe, read_image
from overfeat_tf.merge.calibration import UNCALIBRATED_THRESHOLD, display_threshold, displayed
from overfeat_tf.models.prediction import Prediction, Predictions
from overfeat_tf.models.tasks import BY_NAME, CLASSIFICATION, DETECTION, LOCALIZATION, TASKS, Task
from overfeat_tf.network.presets import Preset
from overfeat_tf.options import InferenceOptions

Images = np.ndarray | Sequence[np.ndarray] | Sequence[bytes]
Answers = dict[str, np.ndarray]
NAMES = 8  # of classes in a summary
AnyImage = str | os.PathLike | bytes | Image.Image | np.ndarray  # of one image, for `predict`


class Predictor(ABC):
    """The inference calls over signatures: of a network in memory, a SavedModel or a served model.

    `predict` takes images of any kind. For the other calls `images` is uint8 [B, H, W, 3], or a list of uint8 [H, W, 3]
    of any sizes, or a list of encoded images (bytes).
    Answers are numpy arrays by the contract's names, the batch first.

    Attributes:
        labels: Class names; none of a served model, which tells them in its answers alone.
        tasks: The names of the tasks that it was trained for.
        concurrency: How many calls from different threads it answers faster than one after the other.
    """

    labels: tuple[str, ...]
    tasks: tuple[str, ...]
    concurrency = 1

    @property
    def display_threshold(self) -> float | None:
        """The score from which a detection is worth showing; None of a served model, which does not tell it."""
        return None

    def least_score(self, task: Task) -> float:
        """Return the score from which an answer is shown: the display threshold, or 0 where a task ranks guesses."""
        known = self.display_threshold
        return 0.0 if task != DETECTION else UNCALIBRATED_THRESHOLD if known is None else known

    @property
    def answered_tasks(self) -> tuple[str, ...]:
        """The tasks that its calls answer: here those that it was trained for."""
        return self.tasks

    def detect(self, images: Images) -> Answers:
        """Find all objects: boxes by falling score (4.3, 5); see `Detections` and `Inference.box_outputs`."""
        return self._answer(DETECTION, images)

    def localize(self, images: Images) -> Answers:
        """Return the top k classes, a box each (4); see `Inference.box_outputs`."""
        return self._answer(LOCALIZATION, images)

    def classify(self, images: Images) -> Answers:
        """Vote over windows, scales and flips (3.3).

        Returns "logits" and "probs" [B, classes] for pixels, "classes" and "scores" [B, K] for encoded images.
        """
        return self._answer(CLASSIFICATION, images)

    def extract_features(
        self, images: Images, layer: str | None = None, scale: int | None = None, fine: bool = False
    ) -> list[np.ndarray]:
        """Compute a layer's output for each image, float32 [h, w, C] (3.2).

        Args:
            images: uint8 [B, H, W, 3], or a list of uint8 [H, W, 3] of any sizes.
            layer: A name of `scan.features.layer_names`; the second full layer before its rectifier if None.
            scale: Number of the scale to show the images at; native size if None.
            fine: Fine rather than coarse stride.

        Raises:
            ValueError: no such layer or scale, or no run, since others have only the default; even without an image.
        """
        return self._extract([_pixels(np.asarray(image)[None])[0] for image in _listed(images)], layer, scale, fine)

    def predict(
        self,
        images: AnyImage | Iterable[AnyImage],
        task: str | None = None,
        threshold: float | None = None,
        several: bool = False,
    ) -> Prediction | Predictions:
        """Find what is in one image or many, given as files, bytes, PIL images or arrays.

            found = model.predict("photo.jpg")
            found.names, found.scores, found.boxes          # boxes in pixels
            found.draw().save("found.png")

        Args:
            images: One image or many, of any kinds: the path of a file; an encoded image (bytes); a PIL image; an array
                or tensor [H, W, C] of uint8, of uint16, or of floats from 0 to 1 (`images.files.as_pixels`). Colours
                are RGB, and alpha is dropped. An array of rank 4 is many.
            task: "detection", "localization" or "classification"; the last that the model was trained for if left out.
            threshold: The least score; if left out, the model's `display_threshold` where it detects, or 0.5 where it
                has none, and 0 for the other tasks.
            several: Whether detections that overlap a better one are kept too. Localization keeps them always.

        Returns:
            A `Prediction` for one image, a list of them for many. Of many, an image that can't be read has a `status`
            that says why, and no objects.

        Raises:
            ValueError: a task that the model does not answer, or a single image that can't be read.
        """
        chosen = BY_NAME[choose_task(self, task)]
        threshold = self.least_score(chosen) if threshold is None else threshold
        several = several or chosen != DETECTION
        if not _is_one(images):
            many = cast(Iterable[AnyImage], images)
            return Predictions(self._predict(image, chosen, threshold, several) for image in many)
        found = self._predict(cast(AnyImage, images), chosen, threshold, several)
        if found.status:
            known = found.status.startswith("expected")
            raise ValueError(found.status if known else f"expected an image that can be read; {found.status}")
        return found

    def _predict(self, image: AnyImage, task: Task, threshold: float, several: bool) -> Prediction:
        held: bytes | Path | np.ndarray
        if isinstance(image, str | os.PathLike):
            held = Path(image)
            data, problem = read_image(held)
            if problem:
                return Prediction(held, status=f"{held}: {problem}")
        elif isinstance(image, bytes):
            data, problem = decodable(image)
            held = data or image
            if problem:
                return Prediction(held, status=problem)
        else:
            try:
                held, data = as_pixels(image), b""
            except DAMAGED_ERRORS as error:  # PIL reads a file when its pixels are asked for
                return Prediction(np.zeros((0, 0, 3), np.uint8), status=str(error))
            if task == CLASSIFICATION:  # whose signature for pixels knows no names
                data = tf.io.encode_png(held).numpy()
        answer = self._answer(task, [data] if data or isinstance(held, bytes | Path) else held[None])
        row = {key: values[0] for key, values in answer.items()}
        if task == CLASSIFICATION:
            found = _classified(held, data, row, threshold)
        else:
            found = _placed(held, row, threshold, several)
        if found.status and isinstance(held, Path):
            return replace(found, status=f"{held}: {found.status}")
        return found

    def _answer(self, task: Task, images: Images) -> Answers:
        encoded, pixels = task.signatures
        images = _listed(images)
        if isinstance(images, np.ndarray):
            return self._run(pixels, images=_pixels(images))
        if all(isinstance(image, bytes) for image in images):
            return self._run(encoded, **{task.encoded_input: np.array(list(images), object)})
        rows = [self._run(pixels, images=_pixels(np.asarray(image)[None])) for image in images]
        return {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}

    @abstractmethod
    def _run(self, signature: str, **inputs: np.ndarray) -> Answers:
        """Run a signature; encoded images are bytes objects, also those of "classify"."""

    def _extract(self, images: list[np.ndarray], layer: str | None, scale: int | None, fine: bool) -> list[np.ndarray]:
        """Compute a layer's output for each image uint8 [H, W, 3]: here by the signature, which has the default."""
        if layer is not None or scale is not None or fine:
            raise ValueError("expected the default layer, native size and coarse stride of a SavedModel; use its run")
        return [self._run("extract_features", images=image[None])["features"][0] for image in images]


class Loaded(Predictor):
    """A model in this process: a run's or a SavedModel."""

    @abstractmethod
    def config(self) -> dict:
        """Describe the model in JSON's types."""

    @property
    def display_threshold(self) -> float:
        """The score from which a detection is worth showing; 0.5 where the model is not calibrated."""
        return display_threshold(self.config())

    def summary(self) -> None:
        """Print what it is: classes, tasks, network, scales, options and parameters."""
        print(summarize(self.config()))

    def __repr__(self) -> str:
        """Name the classes and the tasks."""
        count, names = len(self.labels), ", ".join(self.labels[:3]) + ", ..." * (len(self.labels) > 3)
        return f"<{type(self).__name__}: {count} class{'es' * (count != 1)} ({names}); {', '.join(self.tasks)}>"


def _listed(images: Images) -> Images:
    """Return images if they are a batch [B, H, W, C] or a list; a single image would be taken for its rows."""
    if isinstance(images, tf.Tensor):
        images = images.numpy()
    batch = isinstance(images, np.ndarray) and images.ndim == 4
    if not batch and (isinstance(images, bytes | str | np.ndarray) or not isinstance(images, Sequence)):
        raise ValueError(f"expected uint8 [B, H, W, 3], or a list of images or of bytes; got {describe(images)}")
    return images


def _pixels(images: np.ndarray) -> np.ndarray:
    """Return images if they are uint8 [B, H, W, 3]; a cast would silently turn 0..1 into black."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"expected images of uint8 [H, W, 3]; got a batch of {describe(images)}")
    return images


def choose_task(model: Predictor, task: str | None = None) -> str:
    """Return the task that is asked for, or else the last one that the model was trained for.

    Raises:
        ValueError: the model does not answer it.
    """
    chosen = task or next((name for name in reversed(TASKS) if name in model.tasks), "")
    if chosen not in model.answered_tasks:
        raise ValueError(
            f"expected a task that the model answers, of {', '.join(model.answered_tasks) or 'none'}; got '{chosen}'"
            f"{suggest(str(chosen), model.answered_tasks)}"
        )
    return chosen


def _is_one(images: object) -> bool:
    """Return whether this is one image; arrays of rank 2 and 3 are."""
    if isinstance(images, str | os.PathLike | bytes | Image.Image):
        return True
    rank = getattr(images, "ndim", None)
    if rank is None and not isinstance(images, Iterable):
        raise ValueError(f"expected an image or many: paths, bytes, PIL images or arrays; got {describe(images)}")
    return rank in (2, 3)


def _placed(
    image: bytes | Path | np.ndarray, row: Mapping[str, np.ndarray], threshold: float, several: bool
) -> Prediction:
    """Return an image's boxes that score at least the threshold, from its row of `Inference.box_outputs`."""
    height, width = (int(side) for side in row["image_size"])
    count = int(row["num_detections"])
    boxes, scores = row["detection_boxes"][:count], row["detection_scores"][:count]
    shown = np.flatnonzero(displayed(boxes, scores, threshold, several))
    return Prediction(
        image,
        (height, width),
        tuple(row["detection_class_entities"][i].decode() for i in shown),
        scores[shown],
        boxes[shown] * np.array([height, width, height, width], np.float32),
        row["detection_classes"][:count][shown].astype(np.int64) - 1,
        bytes(row["status"]).decode(),
    )


def _classified(
    image: bytes | Path | np.ndarray, data: bytes, row: Mapping[str, np.ndarray], threshold: float
) -> Prediction:
    """Return an image's classes that score at least the threshold; the signature `classify` has no status."""
    kept = [i for i, name in enumerate(row["classes"]) if name and row["scores"][i] >= threshold]
    status = "" if any(row["classes"]) else decode_image(data)[1].numpy().decode()
    size = image.shape[:2] if isinstance(image, np.ndarray) else (0, 0)
    names = tuple(row["classes"][i].decode() for i in kept)
    return Prediction(image, size, names, row["scores"][kept], status=status)


def summarize(config: Mapping) -> str:
    """Return a model's description as text, from what `Model.config` gives."""
    preset, count = Preset.from_config(config["preset"]), config["num_classes"]
    labels, options = config["labels"], config["options"]
    heads = config.get("per_class", False), config.get("context", False)
    parts = preset.parameters(count, config["background"], *heads)
    if not any(BY_NAME[task].has_boxes for task in config["tasks"]):
        del parts["regressor"]
    changed = [
        f"{field.name}={_text(options[field.name])}"
        for field in fields(InferenceOptions)
        if field.name in options and options[field.name] != field.default
    ]
    rows = {
        "network": preset.name + f", a committee of {1 + len(config['others'])}" * bool(config.get("others")),
        "tasks": ", ".join(config["tasks"]) or "none",
        "classes": f"{count}: {', '.join(labels[:NAMES])}{', ...' * (len(labels) > NAMES)}",
        "window": f"{preset.window} x {preset.window} pixels, every {preset.fine_stride} (fine) or "
        f"{preset.coarse_stride} (coarse)",
        "scales": ", ".join(f"{height}x{width}" for height, width in preset.scales),
        "options": ", ".join(changed) or "the defaults",
        "scores": f"{'' if config.get('calibration') else 'not '}calibrated; worth showing from "
        f"{display_threshold(config):.2f}",
        "parameters": f"{sum(parts.values()):,}: " + ", ".join(f"{part} {number:,}" for part, number in parts.items()),
    }
    return "\n".join(f"{key:12}{value}" for key, value in rows.items())


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
