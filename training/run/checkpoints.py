"""A stage's state on disk, from which it resumes as if it had never stopped, and its best weights by validation."""

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from training.fit.strategy import any_worker
from training.fit.train_step import StageModel
from training.recipes import Schedule
from training.views.pipeline import Bookmarks
from training.views.reading import Place

LEAST_SECONDS = 30.0  # between two checkpoints
SHARE = 0.03  # of the time, at most, that goes into writing them
KEPT = 2
BEST = "best.json"

log = logging.getLogger(__name__)


class Position(tf.train.experimental.PythonState):
    """A step, and where its batch is found in the data."""

    def __init__(self):
        self.step, self.block, self.place, self.batches = 0, 0, Place(), 0

    def serialize(self) -> str:
        return json.dumps([self.step, self.block, self.place, self.batches])

    def deserialize(self, string_value: str) -> None:
        values = json.loads(string_value)
        if len(values) != 4 or len(values[2]) != len(Place._fields):
            raise ValueError("its place in the data is that of an earlier version")
        self.step, self.block, place, self.batches = values
        self.place = Place(*place)


class Checkpoints(keras.callbacks.Callback):
    """Keep all that the next step depends on: weights, optimizer, random seeds, the step and the place in the data.

    A checkpoint is written at the end of each epoch, where the process is asked to end (`training.run.signals`), and
    between as often as costs `SHARE` of the time, but not within `LEAST_SECONDS` of the one before. A run killed at
    any moment resumes from the last one; the steps since are done again, on the same batches and with the same random
    numbers, so that they come to the same weights: only their time is lost.

    tf.train.CheckpointManager writes beside and then points to the new one, and removes old ones last, so a run killed
    while saving still has the checkpoint before. So has one whose latest was damaged on the disk.

    Args:
        folder: Where they are.
        model: The stage's compiled model.
        schedule: The stage's.
        is_chief: Whether this process writes them: among several workers, one.
        averages: Averages of weights, where they are taken.
    """

    def __init__(
        self,
        folder: Path,
        model: StageModel,
        schedule: Schedule,
        is_chief: bool = True,
        averages: Sequence[tf.Variable] = (),
    ):
        super().__init__()
        model.optimizer.build(model.trainable_variables)  # else there is nothing to restore its momenta to
        self._is_chief, self._schedule = is_chief, schedule
        self._position, self._bookmarks = Position(), Bookmarks()
        self._state = tf.train.Checkpoint(
            model=model,
            optimizer=[variable.value for variable in model.optimizer.variables],
            seeds=[variable.value for variable in model.random_states],
            position=self._position,
            **({"averages": list(averages)} if averages else {}),
        )
        self._state.save_counter  # noqa: B018 - is made when asked for, which all workers have to do together
        self._manager = tf.train.CheckpointManager(self._state, str(folder), max_to_keep=KEPT)
        self._saved, self._cost = time.monotonic(), 0.0

    def resume(self) -> int:
        """Restore the latest checkpoint, if any, and remove what a killed process left of others; return the step.

        Where it is damaged, the one before is restored: all that the damaged one gave is written over.

        Raises:
            ValueError: none can be restored: damaged, not of this model, or of an earlier version.
        """
        prefixes, unread = self._latest_first(), []
        for prefix in prefixes:
            try:
                self._state.restore(prefix).assert_existing_objects_matched()
                break
            except (AssertionError, ValueError, LookupError, tf.errors.OpError) as error:  # LookupError: a file cut off
                unread.append((prefix, str(error).partition("\n")[0]))
        if prefixes and len(unread) == len(prefixes):
            latest, line = unread[0]
            raise ValueError(f"expected a checkpoint to resume from in '{latest}'; {line}: use another --run")
        for prefix, line in unread:
            log.warning("'%s' cannot be read (%s): resuming from the checkpoint before", prefix, line)
        if self._is_chief:
            self._remove_leftovers()
        return self._position.step

    def bookmarks(self) -> Bookmarks:
        """Return the bookmarks to read the data with from the current step on."""
        position = self._position
        self._bookmarks = Bookmarks(position.step, position.block, position.place, position.batches)
        return self._bookmarks

    @property
    def step(self) -> int:
        """The steps that are done."""
        return self._position.step

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last of them is an epoch's last, whose end has a checkpoint of its own."""
        done, schedule = self._position.step, self._schedule
        begins_another = done % schedule.epoch_steps == 0 and done // schedule.epoch_steps < schedule.epoch_count
        return begins_another or done == schedule.steps  # the last epoch may be longer

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Save, where it is time."""
        self._position.step += 1
        waited = time.monotonic() - self._saved
        if waited >= max(LEAST_SECONDS, self._cost / SHARE) and not self.at_epoch_end:
            self.save()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.save()

    def save(self) -> None:
        """Write a checkpoint of the current step."""
        position, began = self._position, time.monotonic()
        position.block, position.place = self._bookmarks.at(position.step)
        position.batches = self._bookmarks.batches
        if self._is_chief:
            self._manager.save(checkpoint_number=position.step)
        self._saved = time.monotonic()
        self._cost = self._saved - began

    def _latest_first(self) -> list[str]:
        """List the checkpoints as the folder does, so to all workers alike; the manager goes by its clock."""
        state = tf.train.get_checkpoint_state(self._manager.directory)
        return list(state.all_model_checkpoint_paths)[::-1] if state is not None else []

    def _remove_leftovers(self) -> None:
        kept = {Path(prefix).name for prefix in self._manager.checkpoints}
        for path in Path(self._manager.directory).glob("ckpt-*"):
            if path.name.partition(".")[0] not in kept:
                tf.io.gfile.rmtree(str(path)) if path.is_dir() else path.unlink()


class Monitor(NamedTuple):
    """What a stage is judged by after each epoch: a figure of `fit`'s logs, whose "max" or "min" is best."""

    name: str
    mode: str = "max"

    def better(self, value: float, than: float) -> bool:
        """Return whether a value is as good or better: of equal ones the later has learnt for longer."""
        return value <= than if self.mode == "min" else value >= than


class BestWeights(keras.callbacks.Callback):
    """Keep the weights of the epoch with the best validation, beside the checkpoints, and end a stage early.

    It comes before `Checkpoints` among the callbacks: an epoch that a checkpoint counts as done has been judged. One
    that is done again after a kill is judged again, with the same figures.

    Args:
        folder: The stage's checkpoints.
        monitor: What is compared.
        save: Writes the weights into the folder that it is given.
        checkpoints, epoch_steps: They tell the step, and how many are an epoch.
        patience: Epochs without a better one after which the stage ends; None for all.
        applied: Makes the weights those to be kept, for as long as it takes.
        is_chief: Whether this process writes.
    """

    def __init__(
        self,
        folder: Path,
        monitor: Monitor,
        save: Callable[[Path], None],
        checkpoints: Checkpoints,
        epoch_steps: int,
        patience: int | None,
        applied: Callable[[], AbstractContextManager],
        is_chief: bool = True,
    ):
        super().__init__()
        self._folder, self._monitor, self._save, self._checkpoints = folder, monitor, save, checkpoints
        self._epoch_steps, self._patience, self._applied, self._is_chief = epoch_steps, patience, applied, is_chief

    def read(self) -> dict[str, Any] | None:
        """Return the "best" and the "last" epoch judged, the step, number and value of each; None before the first.

        The best one also has the step at which its value was `reached` first, from which patience counts.
        """
        return _read_best(self._folder)

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
        value = (logs or {}).get(self._monitor.name, math.nan)
        if self._is_chief and not math.isnan(value):
            self._record(epoch, float(value))
        if self._patience is not None and any_worker(tf.distribute.get_strategy(), self._is_chief and self.exhausted()):
            log.info("no better %s for %d epochs: the stage ends here", self._monitor.name, self._patience)
            self.model.stop_training = True

    def _record(self, epoch: int, value: float) -> None:
        step, best = self._checkpoints.step, (self.read() or {}).get("best")
        last = {"step": step, "epoch": epoch + 1, "value": value}
        if best is None or self._monitor.better(value, best["value"]):
            reached = best.get("reached", best["step"]) if best is not None and value == best["value"] else step
            best = {**last, "reached": reached}
            with self._applied():
                self._save(self.weights(best))
        _write_best(self._folder, {"metric": self._monitor.name, "best": best, "last": last})
        for folder in set(self._folder.glob("best-*")) - {self.weights(best)}:
            shutil.rmtree(folder)


def last_step(folder: Path) -> int | None:
    """Return the step of a stage's last checkpoint; None where there is none."""
    latest = tf.train.latest_checkpoint(str(folder))
    return int(latest.rpartition("-")[2]) if latest else None


def renew_patience(folder: Path, step: int) -> None:
    """Let the patience of a stage that goes on after all its steps count from this step."""
    if (judged := _read_best(folder)) is not None:
        judged["best"]["reached"] = step
        _write_best(folder, judged)


def _read_best(folder: Path) -> dict[str, Any] | None:
    return json.loads((folder / BEST).read_text()) if (folder / BEST).is_file() else None


def _write_best(folder: Path, judged: dict[str, Any]) -> None:
    new = folder / f"{BEST}.new"
    new.write_text(json.dumps(judged))
    os.replace(new, folder / BEST)
