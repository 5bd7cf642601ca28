"""What happens beside the steps: a watch on the loss, a bar, plain lines. `tensorboard` has its own."""

import sys
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from training.fit.plan import Plan, duration


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
            f"{what}; lower the learning rate with --set {self._stage}.learning_rate=... and another --run"
        )


class EpochLines(keras.callbacks.Callback):
    """Hand each epoch's figures to a function: plain lines where there is no terminal for a progress bar."""

    def __init__(self, report: Callable[[str], None], stage: str, epochs: int):
        super().__init__()
        self._report, self._stage, self._epochs = report, stage, epochs

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        figures = "  ".join(f"{name} {value:.4g}" for name, value in (logs or {}).items())
        self._report(f"{self._stage} {epoch + 1}/{self._epochs}  {figures}")


class StageBar(keras.callbacks.Callback):
    """Show a stage's steps as a bar on the terminal, with the time left over all stages.

    Args:
        plan: All stages.
        stage: This one.
        done, steps: Its steps that are done, and all of them.
        epochs: How many it has.
    """

    def __init__(self, plan: Plan, stage: str, done: int, steps: int, epochs: int):
        super().__init__()
        self._plan, self._stage, self._epochs = plan, stage, epochs
        self._left, self._timed, self._began, self._epoch = steps - done, 0, 0.0, stage
        layout = "{desc} |{bar}| {n_fmt}/{total_fmt}{postfix}"
        self._bar = tqdm(total=steps, initial=done, file=sys.stderr, bar_format=layout, dynamic_ncols=True)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Name the epoch."""
        self._epoch = f"{self._stage} {epoch + 1}/{self._epochs}"
        self._bar.set_description_str(self._epoch)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Advance; the first step, which traces, does not count in the rate."""
        now = time.monotonic()
        self._left -= 1
        if self._began:
            self._timed += 1
            a_step = (now - self._began) / self._timed
            left = duration(self._plan.seconds_left(self._stage, self._left, a_step))
            figures = "".join(f"{name} {value:.3g}, " for name, value in list((logs or {}).items())[:3])
            self._bar.set_postfix_str(f"{figures}{left} left in all", refresh=False)
        else:
            self._began = now
        self._bar.update()
        if self.params and batch + 1 == self.params["steps"]:  # what follows may take as long as the steps
            self._bar.set_description_str(f"{self._epoch}, validating")

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Name the epoch alone again, once what comes before has validated it."""
        self._bar.set_description_str(self._epoch)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()
