"""What happens beside the steps: a watch on the loss, and plain lines. For TensorBoard, see `boards`."""

from collections.abc import Callable

import keras
import numpy as np


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
