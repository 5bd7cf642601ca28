"""Stop on a scheduler's SIGTERM, or on Ctrl-C, without losing a step."""

import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import keras

from training.run.checkpoints import Checkpoints

SIGNALS = (signal.SIGTERM, signal.SIGINT)
USUAL = (signal.SIG_DFL, signal.default_int_handler)
# How long the main thread may be in one call of TensorFlow, which Python's handlers wait for, after a signal: then the
# data is asked to end, since it may be what does not come; and after as long again, the process ends where it is.
PATIENCE = 10.0

log = logging.getLogger(__name__)


class CheckpointOnSignal(keras.callbacks.Callback):
    """Let the step under way end, write a checkpoint of it, and only then do as the signal says.

    As a context it takes the place of Python's own handlers of `SIGNALS`, in the main thread. A program's own stay as
    they are, as does what a shell has its background jobs ignore. A second signal ends the process at once.

    Python's handlers run only between the main thread's steps, and a step that waits for data may never end. So a
    thread hears the signals too, and acts where the handler has not within `PATIENCE`.

    Args:
        stage: Its name, for the log.
        checkpoints: They come before this callback.
        stop_data: Makes the data that a step may wait for end with an error; see `end_if_asked`.
    """

    def __init__(self, stage: str, checkpoints: Checkpoints, stop_data: Callable[[], None] = lambda: None):
        super().__init__()
        self._stage, self._checkpoints, self._stop_data = stage, checkpoints, stop_data
        self._before: dict[int, Any] = {}
        self._asked, self._heard = 0, threading.Event()
        self._pipe: tuple[int, int] | None = None

    def __enter__(self) -> "CheckpointOnSignal":
        if threading.current_thread() is threading.main_thread():
            usual = [number for number in SIGNALS if signal.getsignal(number) in USUAL]
            self._before = {number: signal.signal(number, self._ask) for number in usual}
        if self._before:
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._wakeup_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=(self._pipe[0],), name="signals", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._pipe is not None and threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._wakeup_before)
            os.close(self._pipe[1])  # which ends the thread
            self._pipe = None

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Stop here after a signal; at an epoch's end only once its checkpoint and its boards are written."""
        if self._asked and not self._checkpoints.at_epoch_end:
            self._checkpoints.save()
            self.end_if_asked()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.end_if_asked()

    def end_if_asked(self) -> None:
        """Do as the signal says, if there was one; the checkpoint is written."""
        if not self._asked:
            return
        name, step = signal.Signals(self._asked).name, self._checkpoints.step
        log.info("%s: %s after step %d, which is kept: the same command resumes from there", self._stage, name, step)
        signal.raise_signal(self._asked)
        raise SystemExit(128 + self._asked)  # the first process of a container is not ended by it

    def _ask(self, number: int, _: FrameType | None) -> None:
        self._asked = number
        self._heard.set()
        self.__exit__()

    def _listen(self, pipe: int) -> None:
        """Wait for a signal, and see to it that it is obeyed where the main thread does not come to it."""
        with os.fdopen(pipe, "rb", buffering=0) as signals:
            numbers = signals.read(1)
            while numbers and numbers[0] not in self._before:  # a program's own
                numbers = signals.read(1)
        if not numbers or self._heard.wait(PATIENCE):
            return
        self._stop_data()
        if not self._heard.wait(PATIENCE):
            name = signal.Signals(numbers[0]).name
            log.warning("%s: %s in a step that does not end: its last checkpoint is kept", self._stage, name)
            os._exit(128 + numbers[0])
