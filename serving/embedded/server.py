"""The embedded server: TF Serving's gRPC services for one machine, and `overfeat serve`, which also starts REST.

It answers tensorflow.serving.PredictionService and ModelService with TF Serving's status codes and, where possible, its
messages. It runs in one Python process: for more than one machine run TF Serving on the same model directories.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from serving.embedded.access import Access, bracketed, listen
from serving.embedded.config import ServedModel, from_directories
from serving.embedded.handler import DEFAULT_MAX_REQUESTS, RequestHandler
from serving.embedded.request_queue import CallPool
from serving.embedded.rest.server import RestServer
from serving.embedded.servables import Models
from serving.embedded.services import MAX_CALLS, MODEL, PREDICTION, THREADS, Interceptor, add_services
from serving.embedded.version_manager import DEFAULT_POLL_SECONDS, VersionManager, require_versions

DEFAULT_PORT = 8500
# Sixteen photographs of 4 MB; the limit of one message, and of one decoded tensor.
DEFAULT_MAX_BYTES = 64 << 20
# How long a stopping server lets requests finish; container runtimes kill after 10 s.
DEFAULT_GRACE_SECONDS = 8.0

_REJECTIONS = 64  # concurrent calls that are rejected: each kind of call has a bound below that of all together
_CONNECTION_RPCS = 64  # concurrent calls of one connection: half of the queue by default
_KEEPALIVE_MS = 20_000  # of silence, after which a client is pinged
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_NOTICE_SECONDS = 0.5  # of answering after the health reports NOT_SERVING
_CANCEL_SECONDS = 1.0  # for cancelled requests to notice: the rows that run finish first
# How often to check for a signal: one sent to a stopped process (SIGSTOP) wakes no thread when the process continues.
_SIGNAL_POLL_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Server(AbstractContextManager):
    """Serves models over gRPC from construction until `stop`; as a context manager, until the block ends.

    Attributes:
        models: what is served.
        handler: answers every request, of gRPC and REST.
        access: what clients need.
        host, port: where it listens.
        rest: the REST port; None without it.
    """

    rest: RestServer | None = None

    def __init__(
        self,
        models: Models,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        *,
        access: Access | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        max_requests: int = DEFAULT_MAX_REQUESTS,
        version_manager: VersionManager | None = None,
        **options: Any,
    ):
        """Listen and answer; the health is NOT_SERVING while the models of the start are loaded.

        Args:
            host, port: where to listen; port 0 is any free one.
            access: what clients need; nothing by default.
            max_bytes: the largest request, and the largest tensor in one.
            version_manager: keeps `models` up to date, and is closed with the server; None if they are fixed.
            models, max_requests, **options: see RequestHandler.

        Raises:
            OSError: the address is taken or not ours.
        """
        listen(host, port).close()  # gRPC's own message says less
        self.models = models
        self.access = access or Access()
        self.host = host
        self._version_manager = version_manager
        options |= {"version_manager": version_manager, "max_requests": max_requests}
        self.handler = RequestHandler(models, max_bytes, **options)
        pools = {kind: CallPool(count, kind, MAX_CALLS) for kind, count in THREADS.items()}
        rejections = ThreadPoolExecutor(2, "reject")
        self._pools = (self.handler.queue, rejections, *pools.values())
        self._server = grpc.server(
            rejections,
            interceptors=[Interceptor(self.handler, self.access)],
            maximum_concurrent_rpcs=max_requests + len(pools) * MAX_CALLS + _REJECTIONS,
            options=[
                ("grpc.so_reuseport", 0),  # or two servers share a port without an error
                # Per connection; further calls wait at the client. Without a limit a client that opens and resets calls
                # by the thousand fills gRPC's queue of calls, and gRPC then cancels the calls of everybody.
                ("grpc.max_concurrent_streams", _CONNECTION_RPCS),
                # A machine that vanishes closes no connection: without pings its calls would hold threads for hours.
                # gRPC closes the connection if a ping has no answer for a minute.
                ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
                ("grpc.max_receive_message_length", max_bytes),
                ("grpc.max_send_message_length", -1),
            ],
        )
        self._health = add_services(self._server, self.handler, pools)
        self.set_ready(not models.starting)
        credentials, where = self.access.server_credentials(), f"{bracketed(host)}:{port}"
        try:
            if credentials is None:
                self.port: int = self._server.add_insecure_port(where)
            else:
                self.port = self._server.add_secure_port(where, credentials)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {where}: {error}") from error
        self._server.start()

    @property
    def address(self) -> str:
        return f"{bracketed(self.host)}:{self.port}"

    def set_ready(self, ready: bool = True) -> None:
        """Report SERVING or NOT_SERVING as the health of the server ("") and both services."""
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", PREDICTION, MODEL):
            self._health.set(name, status)

    def stop(self, grace: float | None = DEFAULT_GRACE_SECONDS, notice: float = 0.0) -> None:
        """Report NOT_SERVING, reject new requests, let running and waiting ones finish, and close.

        Requests may take `grace` seconds to finish; None cancels them. The server goes on answering for `notice`
        seconds after it has reported NOT_SERVING, for load balancers to notice.
        """
        self._health.enter_graceful_shutdown()
        if self._version_manager:
            self._version_manager.close(0)
        time.sleep(notice)
        end = time.monotonic() + (grace or 0.0)
        stopped = self._server.stop(grace)  # returns at once: from now on both reject new requests
        if self.rest is not None:
            self.rest.stop(grace)
        if grace is not None and self.handler.queue.wait_idle(max(end - time.monotonic(), 0.0)):
            # Clients that watch the health, or use reflection, would keep it open until the grace is over.
            stopped = self._server.stop(min(grace, 0.5))
        stopped.wait()
        if self._version_manager:
            self._version_manager.close()
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self.stop(None if kind else DEFAULT_GRACE_SECONDS)


def start(model_dirs: Sequence[Path], *, all_versions: bool = False, **options: Any) -> Server:
    """Load model directories and serve them; see from_directories and start_models."""
    return start_models(from_directories(model_dirs, all_versions), **options)


def start_models(
    wanted: Sequence[ServedModel],
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    *,
    poll_seconds: float = DEFAULT_POLL_SECONDS,
    wait: bool = False,
    config: Path | None = None,
    warm: bool = True,
    rest_port: int | None = None,
    page: bool = False,
    max_bytes: int = DEFAULT_MAX_BYTES,
    **options: Any,
) -> Server:
    """Serve models, and follow the changes of their directories; return once they are loaded.

    The ports open at once: until the models are loaded, their state is LOADING, the health NOT_SERVING, and requests
    get UNAVAILABLE, which clients retry.

    Args:
        wanted: what to serve.
        rest_port: the port of REST and Prometheus, 0 for any free one; None for neither.
        page: whether to show a page to try it there.
        poll_seconds, config, warm: see VersionManager.
        wait: whether models may have no version yet; see VersionManager.start.
        host, port, max_bytes, **options: see Server.

    Raises:
        FileNotFoundError, LoadError: a model cannot be served; see VersionManager.start.
        OSError: the address is taken or not ours.
    """
    listen(host, port).close()  # a taken port is said before anything else
    for model in [] if wait else wanted:
        require_versions(model)
    models = Models()
    models.starting = True
    manager = VersionManager(models, max_bytes, poll_seconds, config, warm)
    server = Server(models, host, port, max_bytes=max_bytes, version_manager=manager, **options)
    try:
        if rest_port is not None:
            server.rest = RestServer(server.handler, host, rest_port, access=server.access, page=page)
            _log.info("REST and metrics on %s%s", server.rest.url, " - open it in a browser to try it" if page else "")
        _log.info("listening on %s while models are loaded", server.address)
        manager.start(wanted, wait)
    except BaseException:
        server.stop(None)
        raise
    server.set_ready()
    return server


def run(wanted: Sequence[ServedModel], *, grace: float = DEFAULT_GRACE_SECONDS, **options: Any) -> None:
    """Serve and log until SIGTERM or SIGINT, let requests finish for `grace` seconds, cancel the rest, exit with 0.

    A second signal ends the process the ordinary way. Must be called from the main thread.

    `options` are those of start_models, which may raise.
    """
    signalled = threading.Event()

    def stop_loading(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop_loading) for number in _STOP_SIGNALS}
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _log.info("this server is for one machine; for more run TF Serving, which takes the same folders")
    try:
        server = start_models(wanted, **options)
    except KeyboardInterrupt:
        _log.info("stopped before all models were loaded")
        return
    for number in _STOP_SIGNALS:
        signal.signal(number, lambda *_: signalled.set())
    _log.info("serving %s on %s", server.models, server.address)
    try:
        while not signalled.wait(_SIGNAL_POLL_SECONDS):
            pass
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
        _log.info("stopping; requests have %g s to finish", grace)
        server.stop(grace, _NOTICE_SECONDS)
    if not server.handler.queue.wait_idle(_CANCEL_SECONDS):
        _log.warning("requests that cannot be cancelled end with the process")
    logging.shutdown()
    os._exit(0)  # the interpreter would wait for the threads of what cannot be cancelled
