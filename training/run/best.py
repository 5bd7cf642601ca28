"""The best weights of a stage by its metric on the validation split, and when to stop looking for better ones."""

import json
import logging
import math
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from training.fit.strategy import any_worker
from training.run.checkpoints import Checkpoints

RECORD = "best.json"

log = logging.getLogger(__name__)


class Judge(NamedTuple):
    """What a stage is judged by after each epoch: a figure of `fit`'s logs, and whether less of it is better."""

    name: str
    falls: bool = False

    def better(self, value: float, than: float) -> bool:
        """Return whether a value is as good or better: of equal ones the later has learnt for longer."""
        return value <= than if self.falls else value >= than


class BestWeights(keras.callbacks.Callback):
    """Keep the weights of the epoch with the best validation, beside the checkpoints, and end a stage early.

    It comes before `Checkpoints` among the callbacks: an epoch that a checkpoint counts as done has been judged. One
    that is done again after a kill is judged again, with the same figures.

    Args:
        folder: The stage's checkpoints.
        judge: What is compared.
        save: Writes the weights into the folder that it is given.
        checkpoints: They know the step.
        epoch_steps: Steps in an epoch.
        patience: Epochs without a better one after which the stage ends; None for all.
        shown: Makes the weights those to be kept, for as long as it takes.
        is_chief: Whether this process writes.
    """

    def __init__(
        self,
        folder: Path,
        judge: Judge,
        save: Callable[[Path], None],
        checkpoints: Checkpoints,
        epoch_steps: int,
        patience: int | None,
        shown: Callable[[], AbstractContextManager],
        is_chief: bool = True,
    ):
        super().__init__()
        self._folder, self._judge, self._save, self._checkpoints = folder, judge, save, checkpoints
        self._epoch_steps, self._patience, self._shown, self._is_chief = epoch_steps, patience, shown, is_chief

    def read(self) -> dict[str, dict[str, Any]] | None:
        """Return the "best" and the "last" epoch judged, the step, number and value of each; None before the first.

        The best one also has the step at which its value was `reached` first.
        """
        path = self._folder / RECORD
        return json.loads(path.read_text()) if path.is_file() else None

    def weights(self, epoch: dict[str, Any]) -> Path:
        """Return the folder of the best weights, those of an epoch that `read` gives."""
        return self._folder / f"best-{epoch['step']}"

    def exhausted(self) -> bool:
        """Return whether the steps done include as many epochs without a better one as there may be."""
        judged = self.read()
        if self._patience is None or judged is None:
            return False
        best = judged["best"]
        return self._checkpoints.step - best.get("reached", best["step"]) >= self._patience * self._epoch_steps

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Keep the weights if they are the best so far; stop if there have been none for long enough."""
        value = (logs or {}).get(self._judge.name, math.nan)
        if self._is_chief and not math.isnan(value):
            self._record(epoch, float(value))
        if self._patience is not None and any_worker(tf.distribute.get_strategy(), self._is_chief and self.exhausted()):
            log.info("no better %s for %d epochs: the stage ends here", self._judge.name, self._patience)
            self.model.stop_training = True

    def _record(self, epoch: int, value: float) -> None:
        last, judged = {"step": self._checkpoints.step, "epoch": epoch + 1, "value": value}, self.read()
        before = judged["best"] if judged is not None else None
        improved = before is None or self._judge.better(value, before["value"])
        equal = before is not None and value == before["value"]
        reached = before.get("reached", before["step"]) if before is not None and equal else last["step"]
        best = {**last, "reached": reached} if before is None or improved else before
        if improved:
            with self._shown():
                self._save(self.weights(best))
        new = self._folder / f"{RECORD}.new"
        new.write_text(json.dumps({"metric": self._judge.name, "best": best, "last": last}))
        os.replace(new, self._folder / RECORD)
        for folder in set(self._folder.glob("best-*")) - {self.weights(best)}:
            shutil.rmtree(folder)
