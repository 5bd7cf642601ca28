"""A model in this process, as people use it: what it says of itself, and `predict` on images of any kind."""

import os
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import tensorflow as tf
from PIL import Image

from overfeat_tf.images.decode import decode_image
from overfeat_tf.images.files import read_image
from overfeat_tf.images.pixels import as_pixels, describe
from overfeat_tf.merge.calibration import displayed
from overfeat_tf.models.prediction import Prediction, Predictions
from overfeat_tf.models.predictor import Predictor, choose_task
from overfeat_tf.models.summary import summarize
from overfeat_tf.models.tasks import BY_NAME, CLASSIFICATION, DETECTION, Task

AnyImage = str | os.PathLike | bytes | Image.Image | np.ndarray  # of one image


class Loaded(Predictor):
    """A model in this process: a run's or a SavedModel."""

    @abstractmethod
    def config(self) -> dict:
        """Describe the model in JSON's types."""

    @property
    @abstractmethod
    def display_threshold(self) -> float:
        """The score from which a detection is worth showing; 0.5 where the model is not calibrated."""

    def summary(self) -> None:
        """Print what it is: classes, tasks, network, scales, options and parameters."""
        print(summarize(self.config()))

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
                or tensor [H, W, C] of uint8, of uint16, or of floats from 0 to 1 (`images.pixels.as_pixels`). Colours
                are RGB, and alpha is dropped. An array of rank 4 is many.
            task: "detection", "localization" or "classification"; the last that the model was trained for if left out.
            threshold: The least score; if left out, the model's `display_threshold` where it detects, and 0 else.
            several: Whether detections that overlap a better one are kept too. Localization keeps them always.

        Returns:
            A `Prediction` for one image, a list of them for many. Of many, an image that can't be read has a `status`
            that says why, and no objects.

        Raises:
            ValueError: a task that the model does not answer, or a single image that can't be read.
        """
        chosen = BY_NAME[choose_task(self, task)]
        if threshold is None:
            threshold = self.display_threshold if chosen == DETECTION else 0.0
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
            held = data = image
        else:
            try:
                held, data = as_pixels(image), b""
            except (ValueError, OSError) as error:  # PIL reads a file when its pixels are asked for
                return Prediction(np.zeros((0, 0, 3), np.uint8), status=str(error))
            if task == CLASSIFICATION:  # whose signature for pixels knows no names
                data = tf.io.encode_png(held).numpy()
        answer = self._answer(task, [data] if data or isinstance(held, bytes | Path) else held[None])
        row = {key: values[0] for key, values in answer.items()}
        if task == CLASSIFICATION:
            return _classified(held, data, row, threshold)
        return _placed(held, row, threshold, several)

    def __repr__(self) -> str:
        """Name the classes and the tasks."""
        count, names = len(self.labels), ", ".join(self.labels[:3]) + ", ..." * (len(self.labels) > 3)
        return f"<{type(self).__name__}: {count} class{'es' * (count != 1)} ({names}); {', '.join(self.tasks)}>"


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
    status = bytes(row["status"]).decode()
    return Prediction(
        image,
        (height, width),
        tuple(row["detection_class_entities"][i].decode() for i in shown),
        scores[shown],
        boxes[shown] * np.array([height, width, height, width], np.float32),
        row["detection_classes"][:count][shown].astype(np.int64) - 1,
        f"{image}: {status}" if status and isinstance(image, Path) else status,
    )


def _classified(
    image: bytes | Path | np.ndarray, data: bytes, row: Mapping[str, np.ndarray], threshold: float
) -> Prediction:
    """Return an image's classes that score at least the threshold; the signature `classify` has no status."""
    kept = [i for i, name in enumerate(row["classes"]) if name and row["scores"][i] >= threshold]
    status = "" if any(row["classes"]) else decode_image(data)[1].numpy().decode()
    size = image.shape[:2] if isinstance(image, np.ndarray) else (0, 0)
    names = tuple(row["classes"][i].decode() for i in kept)
    return Prediction(
        image,
        size,
        names,
        row["scores"][kept],
        status=f"{image}: {status}" if status and isinstance(image, Path) else status,
    )
