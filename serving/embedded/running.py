"""`overfeat serve`: a server in the foreground, until it is asked to stop."""

import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

from serving.embedded.configuration import ServedModel
from serving.embedded.server import DEFAULT_GRACE_SECONDS, DEFAULT_PORT, Server, require_free, start_models
from serving.rest.monitoring import Metrics
from serving.rest.server import RestServer

_log = logging.getLogger(__name__)

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# How long the server goes on answering once its health says that it stops.
_NOTICE_SECONDS = 0.5
# How long requests that were cut off may take to notice: an operation that has begun goes on to its end.
_CUT_SECONDS = 1.0
# How often to look whether a signal came: one to a stopped process (SIGSTOP) wakes no one when that goes on.
_LOOK_SECONDS = 1.0


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
    """Serves until SIGTERM or SIGINT, then lets requests finish; those that take longer are cut off.

    A second signal ends the process the ordinary way. Must be called from the main thread.

    Args:
        wanted: what to serve.
        host: see Server.
        port: see Server.
        rest_port: where to answer REST and Prometheus, 0 for any free port; None for nowhere.
        page: whether to show a page to try it there.
        grace: how many seconds requests may take to finish.
        **options: see start_models.

    Raises:
        FileNotFoundError, ValueError, LoadError, OSError: see start_models.
    """
    asked_to_stop = threading.Event()
    if rest_port is not None:
        require_free(host, rest_port)  # before the loading, which takes long
    server = start_models(wanted, host, port, **options)
    try:
        rest = None if rest_port is None else _start_rest(server, rest_port, page)
    except BaseException:
        server.stop(None)
        raise
    before = {number: signal.signal(number, lambda *_: asked_to_stop.set()) for number in _STOP_SIGNALS}
    _log.info("this server is for one machine; for more run TF Serving, which takes the same folders")
    if rest is not None:
        _log.info("REST and metrics on %s%s", rest.url, " - open it in a browser to try it" if page else "")
    _log.info("serving %s on %s", server.models, server.address)
    try:
        while not asked_to_stop.wait(_LOOK_SECONDS):
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
    if not (server.door.wait_idle(_CUT_SECONDS) and _threads_end(_CUT_SECONDS)):
        _log.warning("requests that cannot be cut off end with the process")
        logging.shutdown()
        os._exit(0)  # the interpreter's own end would wait for their threads


def _threads_end(seconds: float) -> bool:
    """Waits for the threads that the interpreter waits for at its end; returns whether they ended in time."""
    end = time.monotonic() + seconds
    others = [each for each in threading.enumerate() if not each.daemon and each is not threading.main_thread()]
    for thread in others:
        thread.join(max(end - time.monotonic(), 0.0))
    return not any(thread.is_alive() for thread in others)


def _start_rest(server: Server, port: int, page: bool) -> RestServer:
    server.door.observer = metrics = Metrics(server.door)
    return RestServer(server.door, server.host, port, access=server.access, metrics=metrics, page=page)
