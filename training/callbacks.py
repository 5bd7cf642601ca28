"""What happens between epochs: validation mAP, and pictures in TensorBoard."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from overfeat_tf.draw import draw_boxes
from overfeat_tf.model import Model
from training.evaluate import evaluate
from training.metrics import Answer
from training.sources.record import Record, Source


class DetectionValidation(keras.callbacks.Callback):
    """Score detection on a few validation images after each epoch, through the one inference path.

    Adds val_map and val_map50 to the epoch's logs, so it has to stand before whatever reads them, and writes
    pictures with truth and prediction to TensorBoard.
    """

    PICTURES = 6

    def __init__(self, model: Model, source: Source, split: str, images: int, folder: Path):
        super().__init__()
        self._scored, self._source, self._split, self._images = model, source, split, images
        self._writer = tf.summary.create_file_writer(str(folder))

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Evaluate and draw."""
        pictures: list[np.ndarray] = []

        def seen(record: Record, answer: Answer) -> None:
            if len(pictures) < self.PICTURES and len(record.labels) > 0:
                names = [self._source.class_names[label] for label in record.labels]
                picture = draw_boxes(record.image_bytes, answer, (record.boxes, names), least_score=0.3)
                pictures.append(np.asarray(picture))

        figures = evaluate(self._scored, self._source, self._split, limit=self._images, seen=seen, quiet=True)
        if logs is not None:
            logs |= {"val_map": figures["map"], "val_map50": figures["map50"]}
        with self._writer.as_default(step=epoch):
            for number, picture in enumerate(pictures):
                tf.summary.image(f"{self._split}/{number}", picture[None])
        self._writer.flush()


class FiniteLoss(keras.callbacks.Callback):
    """Stop a run whose loss is not finite, and say where.

    Raises:
        FloatingPointError: the loss of a batch is nan or infinite.
    """

    def __init__(self, stage: str, step: int):
        super().__init__()
        self._stage, self._step = stage, step

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Look at the mean loss so far: once not finite, it stays so."""
        if logs and not np.isfinite(logs["loss"]):
            raise FloatingPointError(
                f"the loss of {self._stage} is {logs['loss']} at step {self._step}; lower the learning rate "
                f"(--set {self._stage}.rate=...) and start again with another --run"
            )
        self._step += 1


class Report(keras.callbacks.Callback):
    """Hand each epoch's figures to a function: plain lines where there is no terminal for a progress bar."""

    def __init__(self, report: Callable[[str], None], stage: str, epochs: int):
        super().__init__()
        self._report, self._stage, self._epochs = report, stage, epochs

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Report."""
        figures = "  ".join(f"{name} {value:.4g}" for name, value in (logs or {}).items())
        self._report(f"{self._stage} {epoch + 1}/{self._epochs}  {figures}")
