"""The REST port of the embedded server: TF Serving's API, Prometheus metrics, and a page to try it, over HTTP."""

import logging
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.embedded.access import Access
from serving.embedded.door import Door
from serving.embedded.server import require_free
from serving.rest.api import DEFAULT_TIMEOUT_SECONDS, RestApi, refused
from serving.rest.intake import DEFAULT_MAX_REQUESTS, DEFAULT_WORKERS, HttpRefusal, Intake
from serving.rest.monitoring import CONTENT_TYPE, METRICS_PATH, Metrics
from serving.rest.page import OPEN_PATHS, page_routes

DEFAULT_PORT = 8501
# Open connections; each costs little, but not nothing.
_MAX_CONNECTIONS = 1000
# Longer than clients and proxies keep an idle connection, so that none finds it closed under its next request.
_KEEP_ALIVE_SECONDS = 75
_START_SECONDS = 30.0
# What closing idle connections takes.
_CLOSING_SECONDS = 0.5
_NO_TOKEN = "expected the server's token, as the header Authorization: Bearer TOKEN"


class RestServer:
    """Serves from construction until `stop`, in a thread of its own; as a context manager, until the block ends."""

    def __init__(
        self,
        door: Door,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        *,
        access: Access | None = None,
        max_bytes: int | None = None,
        metrics: Metrics | None = None,
        page: bool = False,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        workers: int = DEFAULT_WORKERS,
        max_requests: int = DEFAULT_MAX_REQUESTS,
    ):
        """Listens and answers.

        Args:
            door: what answers.
            host: the address to listen on; the loopback address keeps other machines out.
            port: the port, or 0 for a free one.
            access: the TLS certificate and the token that requests must carry; None for neither.
            max_bytes: the largest body; the door's own limit if left out. An image in base64 is a third larger.
            metrics: what to show to Prometheus; None for nothing.
            page: whether to show the page to try it, at `/`.
            timeout: the seconds that a request may take.
            workers: requests that run at the same time.
            max_requests: requests that run or wait; further ones get 503.

        Raises:
            OSError: the address is taken or not ours.
        """
        self.host = host
        self._intake = Intake(door.max_bytes if max_bytes is None else max_bytes, workers, max_requests)
        routes = [Route("/v1/{path:path}", RestApi(door, self._intake, timeout).respond, methods=["GET", "POST"])]
        if metrics is not None:
            metrics.gauge("overfeat_rest_requests", "REST requests that are read, wait or run.", lambda: self.held)
            routes.append(Route(METRICS_PATH, _metrics_page(metrics)))
        if page:
            routes += page_routes(lambda: door.models.names, lambda: door.models.display_thresholds())
        app = Starlette(routes=routes, exception_handlers={404: _unknown, 405: _unknown})
        require_free(host, port)
        self._socket = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port: int = self._socket.getsockname()[1]
        self._server = uvicorn.Server(_config(_Entrance(app, access, metrics), access))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="rest", daemon=True)
        self._thread.start()
        self._wait_until_started()

    @property
    def url(self) -> str:
        """Gives the address as a browser takes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._server.config.is_ssl else 'http'}://{host}:{self.port}"

    @property
    def held(self) -> int:
        """Counts the requests that are read, wait or run."""
        return self._intake.held

    def stop(self, grace: float | None = None) -> None:
        """Refuses new requests, lets running ones finish within `grace` seconds (None: cuts them off), and closes."""
        seconds = max(grace or 0.0, _CLOSING_SECONDS)
        self._server.config.timeout_graceful_shutdown = seconds  # type: ignore[assignment]
        self._server.should_exit = True
        self._thread.join(seconds + _START_SECONDS)
        self._intake.close()

    def __enter__(self) -> Self:
        """Returns the server, which is already listening."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the server."""
        self.stop()

    def _wait_until_started(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self._socket.close()
                raise OSError(f"the REST server did not start on {self.host}:{self.port}")
            time.sleep(0.005)


class _Entrance:
    """Lets requests in that carry the token, and counts responses; the page's own files need no token."""

    def __init__(self, app: ASGIApp, access: Access | None, metrics: Metrics | None):
        self._app = app
        self._access = access
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if self._metrics is not None and message["type"] == "http.response.start":
                self._metrics.responded(message["status"])
            await send(message)

        app = self._app if self._permits(scope) else refused(HttpRefusal(401, _NO_TOKEN))
        await app(scope, receive, counted)

    def _permits(self, scope: Scope) -> bool:
        if self._access is None or scope["path"] in OPEN_PATHS:
            return True
        return self._access.permits(Headers(scope=scope).get("authorization"))


def _config(app: ASGIApp, access: Access | None) -> uvicorn.Config:
    tls: dict[str, Any] = {}
    if access is not None and access.cert is not None:
        required = ssl.CERT_NONE if access.client_ca is None else ssl.CERT_REQUIRED
        files = {"ssl_certfile": access.cert, "ssl_keyfile": access.key, "ssl_ca_certs": access.client_ca}
        tls = {**files, "ssl_cert_reqs": required}
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        **tls,
    )


def _metrics_page(metrics: Metrics) -> Callable[[Request], Awaitable[Response]]:
    async def send(request: Request) -> Response:
        return Response(await run_in_threadpool(metrics.page), media_type=CONTENT_TYPE)

    return send


async def _unknown(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    return refused(HttpRefusal(status, f"{HTTPStatus(status).phrase}: {request.method} {request.url.path}"))
