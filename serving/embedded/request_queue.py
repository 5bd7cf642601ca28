"""Admission control: one bounded queue of requests, and the threads that run them, for gRPC and REST together."""

import threading
import time
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import grpc

from serving.errors import StatusError


@dataclass(frozen=True)
class RequestContext:
    """When a request stops being wanted, and how it came.

    Attributes:
        deadline: when the client stops waiting, as `time.monotonic()` counts; None for never.
        is_cancelled: says whether the client has gone; called from any thread.
        entrypoint: the protocol that it came by, by TF Serving's names: GRPC or REST.
    """

    deadline: float | None = None
    is_cancelled: Callable[[], bool] = lambda: False
    entrypoint: str = "GRPC"

    def check(self) -> None:
        """Raise StatusError DEADLINE_EXCEEDED or CANCELLED once nobody waits for the answer."""
        # gRPC also reports a client whose deadline has passed as gone: the deadline comes first.
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise deadline_exceeded()
        if self.is_cancelled():
            raise StatusError(grpc.StatusCode.CANCELLED, "the client cancelled the request")


class RequestQueue(futures.ThreadPoolExecutor):
    """Runs requests on a fixed number of threads, first come, first served, and limits how many wait.

    `submit` never refuses: gRPC calls it after the interceptor has called `require_space`. gRPC submits a call before
    it receives the message, so calls that wait hold next to no memory.
    """

    def __init__(self, workers: int, max_waiting: int):
        super().__init__(workers, "serving")
        self._workers = workers
        self._max_waiting = max_waiting
        self._calls = 0
        self.on_start: Callable[[float], None] = lambda seconds: None  # called with the seconds that a request waited
        self._changed = threading.Condition()

    @property
    def waiting(self) -> int:
        """Count the requests that wait for a thread."""
        return max(self._calls - self._workers, 0)

    def require_space(self) -> None:
        """Raise StatusError UNAVAILABLE, which clients retry, if the queue is full."""
        if self._calls >= self._workers + self._max_waiting:
            message = f"The queue of this server is full: {self._max_waiting} requests wait already"
            raise StatusError(grpc.StatusCode.UNAVAILABLE, message)

    def submit(self, function: Callable, /, *args: Any, **options: Any) -> futures.Future:
        with self._changed:
            self._calls += 1
        submitted = time.monotonic()

        def run() -> Any:
            self.on_start(time.monotonic() - submitted)
            return function(*args, **options)

        future = super().submit(run)
        future.add_done_callback(self._done)
        return future

    def wait_idle(self, seconds: float) -> bool:
        """Wait until no request runs or waits; return whether that happened within `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._calls == 0, seconds)

    def _done(self, _: futures.Future) -> None:
        with self._changed:
            self._calls -= 1
            self._changed.notify_all()


def deadline_exceeded() -> StatusError:
    """Return the error of a request whose deadline has passed."""
    return StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
