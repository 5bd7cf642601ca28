"""`overfeat serve`: gRPC and REST in the foreground until a signal, and the log of a process that runs for long."""

import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

from serving.embedded.access import require_free
from serving.embedded.config import ServedModel
from serving.embedded.rest.metrics import Metrics
from serving.embedded.rest.server import RestServer
from serving.embedded.server import DEFAULT_GRACE_SECONDS, DEFAULT_PORT, Server, start_models

_log = logging.getLogger(__name__)

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_NOTICE_SECONDS = 0.5  # of answering after the health reports NOT_SERVING
_CANCEL_SECONDS = 1.0  # for cancelled requests to notice: the rows that run finish first
# How often to check for a signal: one sent to a stopped process (SIGSTOP) wakes no thread when the process continues.
_POLL_SECONDS = 1.0


def run(
    wanted: Sequence[ServedModel],
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    *,
    rest_port: int | None = None,
    page: bool = False,
    grace: float = DEFAULT_GRACE_SECONDS,
    **options: Any,
) -> None:
    """Serve until SIGTERM or SIGINT, then let requests finish; cancel those that take longer.

    A second signal ends the process the ordinary way. Must be called from the main thread.

    Args:
        wanted: what to serve.
        rest_port: the port of REST and Prometheus, 0 for any free one; None for neither.
        page: whether to show a page to try it there.
        grace: the seconds that requests may take to finish.
        host, port, **options: see start_models, which may raise.
    """
    signalled = threading.Event()
    if rest_port is not None:
        require_free(host, rest_port)  # before loading, which takes long
    server = start_models(wanted, host, port, **options)
    try:
        rest = None if rest_port is None else _start_rest(server, rest_port, page)
    except BaseException:
        server.stop(None)
        raise
    before = {number: signal.signal(number, lambda *_: signalled.set()) for number in _STOP_SIGNALS}
    _log.info("this server is for one machine; for more run TF Serving, which takes the same folders")
    if rest is not None:
        _log.info("REST and metrics on %s%s", rest.url, " - open it in a browser to try it" if page else "")
    _log.info("serving %s on %s", server.models, server.address)
    try:
        while not signalled.wait(_POLL_SECONDS):
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _log.info("stopping; requests have %g s to finish", grace)
        end = time.monotonic() + grace
        server.retire()
        if rest is not None:
            rest.stop(grace)  # first: its requests run in the server
        server.stop(max(end - time.monotonic(), min(grace, 1.0)), _NOTICE_SECONDS)
    if not (server.handler.queue.wait_idle(_CANCEL_SECONDS) and _threads_end(_CANCEL_SECONDS)):
        _log.warning("requests that cannot be cancelled end with the process")
        logging.shutdown()
        os._exit(0)  # the interpreter would wait for their threads


class LogFormatter(logging.Formatter):
    """Starts each line with the time and the level; what gRPC reports of an unreadable message takes one line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; an exception in gRPC's own log is its message instead of its traceback."""
        if record.name.partition(".")[0] == "grpc" and record.exc_info and record.exc_info[1] is not None:
            why = " ".join(str(record.exc_info[1]).split()) or type(record.exc_info[1]).__name__
            message = f"{record.getMessage()} {why}"
            record = logging.LogRecord(record.name, logging.WARNING, record.pathname, record.lineno, message, (), None)
        return super().format(record)


def format_log() -> None:
    """Format each line that the process logs from now on with LogFormatter."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(LogFormatter())


def _threads_end(seconds: float) -> bool:
    """Wait for all threads that the interpreter would wait for; return whether they ended within `seconds`."""
    end = time.monotonic() + seconds
    others = [each for each in threading.enumerate() if not each.daemon and each is not threading.main_thread()]
    for thread in others:
        thread.join(max(end - time.monotonic(), 0.0))
    return not any(thread.is_alive() for thread in others)


def _start_rest(server: Server, port: int, page: bool) -> RestServer:
    server.handler.observer = metrics = Metrics(server.handler)
    return RestServer(server.handler, server.host, port, access=server.access, metrics=metrics, page=page)
