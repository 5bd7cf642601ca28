"""The four inference calls, the same for a network in memory, a SavedModel and a server."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from overfeat_tf.images.pixels import describe
from overfeat_tf.models.tasks import CLASSIFICATION, DETECTION, LOCALIZATION, TASKS, Task

Images = np.ndarray | Sequence[np.ndarray] | Sequence[bytes]
Answers = dict[str, np.ndarray]


class Predictor(ABC):
    """The four inference calls over signatures: of a network in memory, a SavedModel or a served model.

    `images` is uint8 [B, H, W, 3], or a list of uint8 [H, W, 3] of any sizes, or a list of encoded images (bytes).
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
        return self._extract([_pixels(np.asarray(image)[None])[0] for image in images], layer, scale, fine)

    def _answer(self, task: Task, images: Images) -> Answers:
        encoded, pixels = task.signatures
        if isinstance(images, np.ndarray) and images.ndim == 4:
            return self._run(pixels, images=_pixels(images))
        if isinstance(images, bytes | str | np.ndarray) or not isinstance(images, Sequence):
            raise ValueError(f"expected uint8 [B, H, W, 3], or a list of images or of bytes; got {describe(images)}")
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
        )
    return chosen
