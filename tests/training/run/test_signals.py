"""Signals while a stage is fitted: the step under way ends and is written, and then the signal does what it does."""

import ctypes
import os
import signal
import threading
from types import SimpleNamespace

import pytest

from training.run import signals
from training.run.signals import CheckpointOnSignal

STEPS = 4  # an epoch


@pytest.fixture(autouse=True)
def usual():
    """Python's own handlers: a shell has its background jobs ignore SIGINT, and so the tests that run in one."""
    ours = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in ours.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class FakeCheckpoints(SimpleNamespace):
    """Counts steps as the real ones do, and notes which are written."""

    def __init__(self):
        super().__init__(step=0, saved=[])

    @property
    def at_epoch_end(self) -> bool:
        return self.step % STEPS == 0

    def save(self) -> None:
        self.saved.append(self.step)


def fit(checkpoints: FakeCheckpoints, asked_in: int, boards: list[int]) -> None:
    """Do eight steps; a signal comes in one of them. `boards` are written as an epoch ends."""
    with CheckpointOnSignal("detection", checkpoints) as callback:
        for step in range(1, 9):
            if step == asked_in:
                signal.raise_signal(signal.SIGINT)
            checkpoints.step = step
            callback.on_train_batch_end(step)
            if checkpoints.at_epoch_end:
                checkpoints.save()
                boards.append(step)
                callback.on_epoch_end(step // STEPS)


@pytest.mark.parametrize(
    "asked_in, saved, boards", [(1, [1], []), (3, [3], []), (4, [4], [4]), (5, [4, 5], [4]), (8, [4, 8], [4, 8])]
)
def test_the_step_under_way_is_written_once(asked_in, saved, boards, caplog):
    before, checkpoints, written = signal.getsignal(signal.SIGINT), FakeCheckpoints(), []
    with caplog.at_level("INFO"), pytest.raises(KeyboardInterrupt):
        fit(checkpoints, asked_in, written)
    assert checkpoints.saved == saved and written == boards
    assert caplog.messages == [
        f"detection: SIGINT after step {asked_in}, which is kept: the same command resumes from there"
    ]
    assert signal.getsignal(signal.SIGINT) == before


def test_a_second_signal_does_not_wait():
    checkpoints = FakeCheckpoints()
    with pytest.raises(KeyboardInterrupt), CheckpointOnSignal("detection", checkpoints):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert not checkpoints.saved


def test_signals_are_left_as_they_were():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    checkpoints, written = FakeCheckpoints(), []
    fit(checkpoints, 0, written)
    assert written == [4, 8]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize("other", [signal.SIG_IGN, lambda number, frame: None])
def test_what_a_program_does_with_a_signal_stays(other):
    before = signal.signal(signal.SIGINT, other)
    checkpoints, written = FakeCheckpoints(), []
    try:
        fit(checkpoints, 3, written)
        assert signal.getsignal(signal.SIGINT) == other
    finally:
        signal.signal(signal.SIGINT, before)
    assert written == checkpoints.saved == [4, 8]


def test_a_process_that_a_signal_does_not_end_ends(monkeypatch):
    """As the first of a container, to which the kernel does not hand signals that it has no handler for."""
    monkeypatch.setattr(signal, "raise_signal", lambda number: None)
    checkpoints = FakeCheckpoints()
    with pytest.raises(SystemExit) as end, CheckpointOnSignal("detection", checkpoints) as callback:
        os.kill(os.getpid(), signal.SIGTERM)
        checkpoints.step = 1
        callback.on_train_batch_end(1)
    assert end.value.code == 143 and checkpoints.saved == [1]


@pytest.mark.parametrize("data_ends", [True, False])
def test_a_signal_is_obeyed_in_a_call_that_waits_for_data(data_ends, monkeypatch, caplog):
    libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)  # a call that no handler can run in
    ended: list[int] = []

    def end(code: int) -> None:
        ended.append(code)
        libc.pthread_mutex_unlock(lock)

    monkeypatch.setattr(signals, "PATIENCE", 0.2)
    monkeypatch.setattr(os, "_exit", end)
    stop = (lambda: libc.pthread_mutex_unlock(lock)) if data_ends else (lambda: None)
    libc.pthread_mutex_lock(lock)
    with pytest.raises(KeyboardInterrupt), CheckpointOnSignal("detection", FakeCheckpoints(), stop) as callback:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        libc.pthread_mutex_lock(lock)
        callback.end_if_asked()
    assert ended == ([] if data_ends else [130])
    assert any("in a step that does not end" in line for line in caplog.messages) is not data_ends
