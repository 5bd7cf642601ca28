"""Callbacks of `fit`: a watch on the loss, averages of weights, a table, lines, a bar."""

import csv
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from overfeat_tf.network.convnet import Network
from overfeat_tf.network.keras_backbone import leaf_layers
from training.fit.plan import Plan, duration
from training.fit.train_step import StageModel
from training.run.checkpoints import Checkpoints

RESULTS = "results.csv"


class StageCallbacks(keras.callbacks.CallbackList):
    """The callbacks of a stage, which may take several calls of `fit`; training begins and ends once for them.

    Else `CSVLogger` would write its file anew for a last epoch that is longer, and `EarlyStopping` would restore the
    best weights before it.

    Attributes:
        figures: Those of the epochs by their names, each a list.
    """

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback], model: keras.Model, epochs: int, steps: int):
        """Take the callbacks of a stage of so many epochs, each with so many steps."""
        history = keras.callbacks.History()  # of this stage alone, unlike a user's own; the last one counts
        super().__init__([*callbacks, history], model=model, verbose=0, epochs=epochs, steps=steps)
        self.figures: dict[str, list[float]] = history.history

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Leave it to `begin`."""

    def on_train_end(self, logs: dict | None = None) -> None:
        """Leave it to `end`."""

    def begin(self) -> None:
        """Begin the stage."""
        super().on_train_begin()

    def end(self) -> None:
        """End the stage, with the figures of its last epoch."""
        super().on_train_end({name: values[-1] for name, values in self.figures.items()})


class FiniteLoss(keras.callbacks.Callback):
    """Stop a run whose loss is not finite, or at an epoch's end its weights, before they are written; and say where.

    Raises:
        FloatingPointError: the loss of a batch, or what an epoch has left, is nan or infinite.
    """

    def __init__(self, stage: str, step: int):
        """Take the stage's name, and the steps that it has done."""
        super().__init__()
        self._stage, self._step = stage, step

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Look at the mean loss so far: once not finite, it stays so."""
        self._step += 1
        if logs and not np.isfinite(logs["loss"]):
            self._stop(f"the loss of {self._stage} is {logs['loss']} at step {self._step}")

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Look at what the last step has made of the weights, whose loss no step has seen."""
        if logs and not np.isfinite(logs.get("val_loss", 0.0)):
            self._stop(f"the validation loss of {self._stage} is {logs['val_loss']} after step {self._step}")
        if not all(bool(tf.reduce_all(tf.math.is_finite(weight.value))) for weight in self.model.trainable_weights):
            self._stop(f"weights of {self._stage} are not finite after step {self._step}")

    def _stop(self, what: str) -> None:
        raise FloatingPointError(
            f"{what}; lower the learning rate with --set {self._stage}.learning_rate=... and another --run"
        )


class EMA(keras.callbacks.Callback):
    """Average the weights that a stage moves, after each step; and show the averages to its validation.

    Keras's own `use_ema` has one decay from the first step on, so that a short stage would be averaged with the weights
    that it began with, and leaves out the statistics of batch normalisation. Here it is (1 + step) / (10 + step), up to
    `decay`.
    """

    def __init__(self, model: StageModel, network: Network, decay: float):
        super().__init__()
        self._decay, self._steps = decay, model.optimizer.iterations
        layers = [layer for part in network.parts.values() for layer, _ in leaf_layers(part) if layer.trainable]
        self._weights = [weight for layer in layers for weight in layer.weights]
        self.variables = [tf.Variable(weight.numpy(), trainable=False) for weight in self._weights]
        self._before: list | None = None

        @tf.function(autograph=False)
        def update(decay: tf.Tensor) -> None:
            for average, weight in zip(self.variables, self._weights, strict=True):
                average.assign(decay * average + (1.0 - decay) * weight.value)

        self._update = update

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Take the step's weights into the average."""
        step = float(self._steps.numpy())
        self._update(tf.constant(min(self._decay, (1 + step) / (10 + step)), tf.float32))

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Show the averages."""
        self._before = [weight.numpy() for weight in self._weights]
        self.apply()

    def on_test_end(self, logs: dict | None = None) -> None:
        """Go back to the weights themselves."""
        for weight, value in zip(self._weights, self._before or (), strict=True):
            weight.assign(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Set the weights to their averages within a block."""
        self.on_test_begin()
        try:
            yield
        finally:
            self.on_test_end()

    def apply(self) -> None:
        """Set the weights to their averages."""
        for weight, average in zip(self._weights, self.variables, strict=True):
            weight.assign(average.numpy())


class Results(keras.callbacks.Callback):
    """Add an epoch's figures to the run's table; an epoch that is done again after a kill replaces its row."""

    def __init__(self, run: Path, stage: str, checkpoints: Checkpoints):
        super().__init__()
        self._path, self._stage, self._checkpoints = run / RESULTS, stage, checkpoints
        self._began = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._began = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Write the table beside the old one, and put it in its place."""
        step = self._checkpoints.step
        row: dict[str, Any] = {
            "stage": self._stage,
            "epoch": epoch + 1,
            "step": step,
            "seconds": round(time.monotonic() - self._began, 1),
            "learning_rate": f"{float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)):.4g}",
            **{name: f"{value:.6g}" for name, value in (logs or {}).items()},
        }
        rows = [one for one in read_results(self._path) if one["stage"] != self._stage or int(one["step"]) < step]
        names = dict.fromkeys(name for one in (*rows, row) for name in one)
        new = self._path.with_name(f"{RESULTS}.new")
        with open(new, "w", newline="") as file:
            table = csv.DictWriter(file, list(names))
            table.writeheader()
            table.writerows([*rows, row])
        os.replace(new, self._path)


def read_results(path: Path) -> list[dict[str, str]]:
    """Read the rows of a run's table, each with the figures that its stage has; none where there is no table."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


class EpochLines(keras.callbacks.Callback):
    """Hand each epoch's figures to a function: plain lines where there is no terminal for a progress bar."""

    def __init__(self, report: Callable[[str], None], stage: str, epochs: int):
        super().__init__()
        self._report, self._stage, self._epochs = report, stage, epochs

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        figures = "  ".join(f"{name} {value:.4g}" for name, value in (logs or {}).items())
        self._report(f"{self._stage} {epoch + 1}/{self._epochs}  {figures}")


class StageBar(keras.callbacks.Callback):
    """Show a stage's steps, `done` of `steps`, as a bar on the terminal, with the time left over all stages."""

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
