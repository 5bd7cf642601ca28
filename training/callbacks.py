"""What happens between epochs: checkpoints, a watch on the loss, and plain lines; for TensorBoard, see `boards`."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf


class Checkpoints(keras.callbacks.Callback):
    """Keep the stage's state - weights, optimizer, epoch - after each epoch, and take it up again.

    tf.train.CheckpointManager writes beside and then points to the new one, so a run killed while saving still has
    the checkpoint before.
    """

    def __init__(self, folder: Path, model: keras.Model):
        super().__init__()
        model.optimizer.build(model.trainable_variables)  # else there is nothing to restore its momenta to
        self._epoch = tf.Variable(0, trainable=False, dtype=tf.int64)
        state = tf.train.Checkpoint(model=model, optimizer=model.optimizer, epoch=self._epoch)
        self._manager = tf.train.CheckpointManager(state, str(folder), max_to_keep=2)

    def resume(self) -> int:
        """Restore the latest checkpoint, if any; return the number of epochs that were done."""
        self._manager.restore_or_initialize()
        return int(self._epoch.numpy())

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Save."""
        self._epoch.assign(epoch + 1)
        self._manager.save()


class FiniteLoss(keras.callbacks.Callback):
    """Stop a run whose loss is not finite, and say where.

    Raises:
        FloatingPointError: the loss of a batch is nan or infinite.
    """

    def __init__(self, stage: str, steps_an_epoch: int):
        super().__init__()
        self._stage, self._steps, self._epoch = stage, steps_an_epoch, 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Remember the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Look at the mean loss so far: once not finite, it stays so."""
        if logs and not np.isfinite(logs["loss"]):
            step = self._epoch * self._steps + batch
            raise FloatingPointError(
                f"the loss of {self._stage} is {logs['loss']} at step {step}; lower the learning rate "
                f"(--set {self._stage}.rate=...) and start again with another --run"
            )


class Report(keras.callbacks.Callback):
    """Hand each epoch's figures to a function: plain lines where there is no terminal for a progress bar."""

    def __init__(self, report: Callable[[str], None], stage: str, epochs: int):
        super().__init__()
        self._report, self._stage, self._epochs = report, stage, epochs

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Report."""
        figures = "  ".join(f"{name} {value:.4g}" for name, value in (logs or {}).items())
        self._report(f"{self._stage} {epoch + 1}/{self._epochs}  {figures}")
