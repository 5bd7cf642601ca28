"""`overfeat serve`: a server in the foreground, until it is asked to stop."""

import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from serving.configuration import ServedModel
from serving.server import DEFAULT_GRACE_SECONDS, DEFAULT_PORT, start_models

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# How long the server goes on answering once its health says that it stops.
_NOTICE_SECONDS = 0.5


def run(
    wanted: Sequence[ServedModel],
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    *,
    grace: float = DEFAULT_GRACE_SECONDS,
    **options: Any,
) -> None:
    """Serves until SIGTERM or SIGINT, then lets running and waiting requests finish.

    A second signal ends the process the ordinary way. Must be called from the main thread.

    Args:
        wanted: what to serve.
        host: see Server.
        port: see Server.
        grace: how many seconds requests may take to finish.
        **options: see start_models.

    Raises:
        FileNotFoundError, ValueError, LoadError, OSError: see start_models.
    """
    asked_to_stop = threading.Event()
    server = start_models(wanted, host, port, **options)
    before = {number: signal.signal(number, lambda *_: asked_to_stop.set()) for number in _STOP_SIGNALS}
    _say("this server is for one machine; for more run TF Serving, which takes the same folders")
    _say(f"serving {server.models} on {server.address}")
    try:
        asked_to_stop.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _say(f"stopping; requests have {grace:g} s to finish")
        server.stop(grace, _NOTICE_SECONDS)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
