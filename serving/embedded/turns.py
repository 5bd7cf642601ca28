"""Requests take turns: so many at a time, so many in the queue, the next is refused."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import grpc

from serving.refusal import Refusal


class Turns:
    """Lets so many requests run at a time and so many wait, first come, first served."""

    def __init__(self, running: int, waiting: int):
        """Takes how many run at the same time, and how many may wait for it."""
        self._free = running
        self._most_waiting = waiting
        self._lock = threading.Lock()
        self._line: deque[threading.Event] = deque()

    @property
    def waiting(self) -> int:
        """Counts the requests that wait."""
        return len(self._line)

    @contextlib.contextmanager
    def turn(self, deadline: float | None = None, cancelled: Callable[[], bool] | None = None) -> Iterator[None]:
        """Waits for a turn, which lasts as long as the block.

        Args:
            deadline: when nobody waits for the answer any more, as `time.monotonic()` counts; None for never.
            cancelled: says whether the client is gone; asked once it is its turn.

        Raises:
            Refusal: UNAVAILABLE where too many wait already, DEADLINE_EXCEEDED, or CANCELLED.
        """
        self._take(deadline)
        try:
            require_wanted(deadline, cancelled)
            yield
        finally:
            self._pass_on()

    def _take(self, deadline: float | None) -> None:
        with self._lock:
            if self._free > 0:
                self._free -= 1
                return
            if len(self._line) >= self._most_waiting:
                raise full(self._most_waiting)
            mine = threading.Event()
            self._line.append(mine)
        if mine.wait(seconds_left(deadline)):
            return
        with self._lock:
            if not mine.is_set():
                self._line.remove(mine)
                raise too_late()
        # The turn came in the last moment: it is ours to pass on, which the caller's block does.

    def _pass_on(self) -> None:
        with self._lock:
            if self._line:
                self._line.popleft().set()
            else:
                self._free += 1


def seconds_left(deadline: float | None) -> float | None:
    """Gives how long to wait; None for as long as it takes, which gRPC calls infinite and locks do not know."""
    return None if deadline is None else min(max(deadline - time.monotonic(), 0.0), threading.TIMEOUT_MAX)


def require_time(deadline: float | None) -> None:
    """Refuses what nobody waits for any more."""
    if deadline is not None and time.monotonic() >= deadline:
        raise too_late()


def require_wanted(deadline: float | None, cancelled: Callable[[], bool] | None) -> None:
    """Refuses what nobody waits for any more, the client being gone or the time over."""
    if cancelled is not None and cancelled():
        # gRPC takes a client whose time is over for one that has left.
        raise too_late() if deadline is not None and time.monotonic() >= deadline else gone()
    require_time(deadline)


def too_late() -> Refusal:
    """Makes the refusal of a request past its deadline."""
    return Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")


def gone() -> Refusal:
    """Makes the refusal of a request that its client has cancelled, which nobody reads."""
    return Refusal(grpc.StatusCode.CANCELLED, "the client cancelled the request")


def full(most_waiting: int) -> Refusal:
    """Makes the refusal of a request for which the queue has no place; clients try again."""
    return Refusal(
        grpc.StatusCode.UNAVAILABLE, f"The queue of this server is full: {most_waiting} requests wait already"
    )
