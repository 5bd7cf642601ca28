"""What a REST server takes in at a time: so many requests, so many bytes; and the threads that answer them."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent import futures
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import grpc
from starlette.requests import ClientDisconnect, Request

from serving.refusal import Refusal

# Requests that run at a time. They wait in threads of their own while the server runs them in batches, so that there
# must be many more than CPUs.
DEFAULT_WORKERS = 32
# Running and waiting requests together; the next is refused with 503.
DEFAULT_MAX_REQUESTS = 128
# All bodies that are held at a time, in bodies of the largest size.
_BODIES_HELD = 4
# How long a body may take to come in: else a few slow clients would take all places.
_BODY_SECONDS = 60.0

_Answer = TypeVar("_Answer")


class HttpRefusal(Exception):  # noqa: N818 - not an error of ours
    """Refuses a request by an HTTP status that no gRPC code stands for."""

    def __init__(self, status: int, message: str):
        """Keeps the status and a message of one line."""
        self.status = status
        self.message = message
        super().__init__(f"{status}: {message}")


class Intake:
    """Holds requests while they are read and answered, and refuses more than there is room for.

    All but `close` is for the event loop's thread alone.

    Attributes:
        held: the requests that are read, wait or run.
    """

    def __init__(self, max_bytes: int, workers: int = DEFAULT_WORKERS, max_requests: int = DEFAULT_MAX_REQUESTS):
        """Takes the largest body in bytes, how many requests run at a time, and how many run or wait."""
        self.held = 0
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._bytes_held = 0
        self._workers = futures.ThreadPoolExecutor(workers, "rest")

    def close(self) -> None:
        """Ends the threads; requests that still wait are not run."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytearray]:
        """Reads a request's body, once there is room for it, and keeps the room until the block ends.

        Raises:
            Refusal: UNAVAILABLE, where there is no room.
            HttpRefusal: the body is too large, too slow or compressed.
        """
        if self.held >= self._max_requests:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, f"{self.held} requests run or wait already; try again later")
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HttpRefusal(415, "expected a body without Content-Encoding")
        if int(request.headers.get("content-length", 0)) > self._max_bytes:  # the HTTP library has checked the number
            raise self._too_large()
        body = bytearray()
        self.held += 1
        try:
            await self._read(request, body)
            yield body
        finally:
            self.held -= 1
            self._bytes_held -= len(body)

    async def run(self, request: Request, answer: Callable[[Callable[[], bool]], _Answer]) -> _Answer:
        """Runs a function in a thread, as soon as one is free, unless the client is gone by then.

        Args:
            request: the request, whose body has been read.
            answer: gets a function that says whether the client is gone.

        Raises:
            ClientDisconnect: nobody waits for the answer any more.
            Refusal: UNAVAILABLE, where the server stops and this took longer than its grace.
        """
        gone = threading.Event()
        running = self._workers.submit(answer, gone.is_set)
        watching = asyncio.create_task(_watch(request, gone, running))
        try:
            return await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            if gone.is_set():
                raise ClientDisconnect from None
            # The server stops and its grace is over; let through, this would be a traceback for each request.
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "the server has stopped") from None
        finally:
            gone.set()  # a server that stops gives up on requests that still run
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    async def _read(self, request: Request, body: bytearray) -> None:
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    self._bytes_held += len(chunk)
                    if len(body) > self._max_bytes:
                        raise self._too_large()
                    if self._bytes_held > _BODIES_HELD * self._max_bytes:
                        raise Refusal(grpc.StatusCode.UNAVAILABLE, "too many large requests at a time; try again later")
        except TimeoutError:
            raise HttpRefusal(408, f"expected the whole body within {_BODY_SECONDS:g} s") from None

    def _too_large(self) -> HttpRefusal:
        return HttpRefusal(413, f"the body is larger than the {self._max_bytes} bytes that this server takes")


async def _watch(request: Request, gone: threading.Event, running: futures.Future) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    gone.set()
    running.cancel()
