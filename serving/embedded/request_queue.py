"""Admission control: one bounded queue of requests, and the threads that run them, for gRPC and REST together."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from serving.errors import StatusError

DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"
CANCELLED = grpc.StatusCode.CANCELLED, "the client cancelled the request"
_CHECK_SECONDS = 0.2  # between checks whether the client of a waiting request is still there


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
            raise StatusError(*DEADLINE_EXCEEDED)
        if self.is_cancelled():
            raise StatusError(*CANCELLED)


class CallPool(futures.ThreadPoolExecutor):
    """Threads for calls of one kind, of which at most `limit` run or wait.

    `submit` never refuses: gRPC calls it after the interceptor has called `require_space`.
    """

    def __init__(self, threads: int, kind: str, limit: int):
        super().__init__(threads, kind)
        self._kind, self._limit, self._calls = kind, limit, 0
        self._changed = threading.Condition()

    def require_space(self) -> None:
        """Raise StatusError UNAVAILABLE, which clients retry, if there are too many calls."""
        if self._calls >= self._limit:
            message = f"expected at most {self._limit} {self._kind} calls at a time; try again later"
            raise StatusError(grpc.StatusCode.UNAVAILABLE, message)

    def submit(self, function: Callable, /, *args: Any, **options: Any) -> futures.Future:
        with self._changed:
            self._calls += 1
        future = super().submit(function, *args, **options)
        future.add_done_callback(self._done)
        return future

    def wait_idle(self, seconds: float) -> bool:
        """Wait until no call runs or waits; return whether that happened within `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._calls == 0, seconds)

    def _done(self, _: futures.Future) -> None:
        with self._changed:
            self._calls -= 1
            self._changed.notify_all()


class RequestQueue(CallPool):
    """Threads for requests, and slots to run them: a few run at a time, first come, first served, and some wait.

    A call's message is received on its thread, so there is one for each request: a slow sender holds up no other until
    its time is over (`services`).
    """

    def __init__(self, workers: int, max_waiting: int, max_bytes: int):
        """Let `workers` requests run; the messages of those that wait may take `max_bytes` together."""
        super().__init__(workers + max_waiting, "serving", workers + max_waiting)
        self._workers, self._max_waiting, self._max_bytes = workers, max_waiting, max_bytes
        self._running = self._bytes = 0
        self._waiting: deque[object] = deque()
        self.on_start: Callable[[float], None] = lambda seconds: None  # called with the seconds that a request waited

    @property
    def waiting(self) -> int:
        """Count the waiting requests."""
        return len(self._waiting)

    def require_space(self) -> None:
        """Raise StatusError UNAVAILABLE, which clients retry, if the queue is full."""
        if self._calls >= self._limit:
            message = f"The queue of this server is full: {self._max_waiting} requests wait already"
            raise StatusError(grpc.StatusCode.UNAVAILABLE, message)

    @contextmanager
    def slot(self, context: RequestContext, size: int = 0) -> Iterator[None]:
        """Wait for a slot, and hold it for as long as the block runs.

        Raises:
            StatusError: nobody waits for the answer any more, or the messages that wait, of which this one has `size`
                bytes, are too large together.
        """
        ticket, asked = object(), time.monotonic()
        with self._changed:
            if self._waiting and self._bytes + size > self._max_bytes:
                message = "too many large requests at a time; try again later"
                raise StatusError(grpc.StatusCode.UNAVAILABLE, message)
            self._waiting.append(ticket)
            self._bytes += size
            try:
                while self._running >= self._workers or self._waiting[0] is not ticket:
                    self._changed.wait(_CHECK_SECONDS)
                    context.check()
                self._running += 1
            finally:
                self._waiting.remove(ticket)
                self._bytes -= size
                self._changed.notify_all()
        try:
            self.on_start(time.monotonic() - asked)
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()
