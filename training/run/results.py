"""results.csv: a row for each epoch of each stage, for spreadsheets and plots."""

import csv
import os
import time
from pathlib import Path

import keras

from training.run.checkpoints import Checkpoints

RESULTS = "results.csv"
FIRST = ("stage", "epoch", "step", "seconds", "learning_rate")


class Results(keras.callbacks.Callback):
    """Add an epoch's figures to the run's table; an epoch that is done again after a kill replaces its row.

    Args:
        run: The run's folder.
        stage: The stage.
        checkpoints: They know the step.
    """

    def __init__(self, run: Path, stage: str, checkpoints: Checkpoints):
        super().__init__()
        self._path, self._stage, self._checkpoints = run / RESULTS, stage, checkpoints
        self._began = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._began = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Write the table beside the old one, and put it in its place."""
        learning_rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        step, seconds = self._checkpoints.step, round(time.monotonic() - self._began, 1)
        first = (self._stage, epoch + 1, step, seconds, f"{learning_rate:.4g}")
        row = dict(zip(FIRST, first, strict=True)) | {name: f"{value:.6g}" for name, value in (logs or {}).items()}
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
