"""Stop on a scheduler's SIGTERM, or on Ctrl-C, without losing a step."""

import logging
import signal
import threading
from types import FrameType
from typing import Any

import keras

from training.run.checkpoints import Checkpoints

SIGNALS = (signal.SIGTERM, signal.SIGINT)
USUAL = (signal.SIG_DFL, signal.default_int_handler)

log = logging.getLogger(__name__)


class CheckpointOnSignal(keras.callbacks.Callback):
    """Let the step under way end, write a checkpoint of it, and only then do as the signal says.

    As a context it takes the place of Python's own handlers of `SIGNALS`, in the main thread. A program's own stay as
    they are, as does what a shell has its background jobs ignore. A second signal ends the process at once.

    Args:
        stage: The stage, for the line that says where it ended.
        checkpoints: Where to write; it comes before this one among the callbacks.
    """

    def __init__(self, stage: str, checkpoints: Checkpoints):
        super().__init__()
        self._stage, self._checkpoints = stage, checkpoints
        self._before: dict[int, Any] = {}
        self._asked = 0

    def __enter__(self) -> "CheckpointOnSignal":
        if threading.current_thread() is threading.main_thread():
            usual = [number for number in SIGNALS if signal.getsignal(number) in USUAL]
            self._before = {number: signal.signal(number, self._ask) for number in usual}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Stop here after a signal; at an epoch's end only once its checkpoint and its boards are written."""
        if self._asked and not self._checkpoints.at_epoch_end:
            self._checkpoints.save()
            self._end()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Stop here after a signal."""
        if self._asked:
            self._end()

    def _ask(self, number: int, _: FrameType | None) -> None:
        self._asked = number
        self.__exit__()

    def _end(self) -> None:
        name, step = signal.Signals(self._asked).name, self._checkpoints.step
        log.info("%s: %s after step %d, which is kept: the same command resumes from there", self._stage, name, step)
        signal.raise_signal(self._asked)
        raise SystemExit(128 + self._asked)  # the first process of a container is not ended by it
