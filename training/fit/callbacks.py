"""What happens beside the steps: a watch on the loss, marks for a profile, plain lines. For TensorBoard: `boards`."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf


class FiniteLoss(keras.callbacks.Callback):
    """Stop a run whose loss is not finite, or at an epoch's end its weights, before they are written; and say where.

    Raises:
        FloatingPointError: the loss of a batch, or what an epoch has left, is nan or infinite.
    """

    def __init__(self, stage: str, step: int):
        super().__init__()
        self._stage, self._step = stage, step

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Look at the mean loss so far: once not finite, it stays so."""
        if logs and not np.isfinite(logs["loss"]):
            self._stop(f"the loss of {self._stage} is {logs['loss']} at step {self._step}")
        self._step += 1

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Look at what the last step has made of the weights, whose loss no step has seen."""
        if logs and not np.isfinite(logs.get("val_loss", 0.0)):
            self._stop(f"the validation loss of {self._stage} is {logs['val_loss']} after step {self._step - 1}")
        if not all(bool(tf.reduce_all(tf.math.is_finite(weight.value))) for weight in self.model.trainable_weights):
            self._stop(f"weights of {self._stage} are not finite after step {self._step - 1}")

    def _stop(self, what: str) -> None:
        raise FloatingPointError(
            f"{what}; lower the learning rate (--set {self._stage}.rate=...) and start again with another --run"
        )


class EpochLines(keras.callbacks.Callback):
    """Hand each epoch's figures to a function: plain lines where there is no terminal for a progress bar."""

    def __init__(self, report: Callable[[str], None], stage: str, epochs: int):
        super().__init__()
        self._report, self._stage, self._epochs = report, stage, epochs

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Report."""
        figures = "  ".join(f"{name} {value:.4g}" for name, value in (logs or {}).items())
        self._report(f"{self._stage} {epoch + 1}/{self._epochs}  {figures}")
