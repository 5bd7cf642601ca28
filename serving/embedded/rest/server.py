"""The REST port of the embedded server: TF Serving's API, Prometheus metrics, and a page to try it, over HTTP."""

import logging
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from http import HTTPStatus
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.embedded.access import Access, bracketed, listen, require_free
from serving.embedded.handler import RequestHandler
from serving.embedded.rest.api import DEFAULT_TIMEOUT_SECONDS, HttpError, RestApi, error_response
from serving.embedded.rest.metrics import CONTENT_TYPE, METRICS_PATH, Metrics
from serving.embedded.rest.page import OPEN_PATHS, page_routes

DEFAULT_PORT = 8501
_MAX_CONNECTIONS = 1000
# Longer than clients and proxies keep an idle connection, so that none is closed under the next request.
_KEEP_ALIVE_SECONDS = 75
_START_SECONDS = 30.0
_CLOSING_SECONDS = 0.5  # for idle connections
_NO_TOKEN = "expected the server's token, as the header Authorization: Bearer TOKEN"


class RestServer(AbstractContextManager):
    """Serves from construction until `stop`, in a thread of its own; as a context manager, until the block ends."""

    def __init__(
        self,
        handler: RequestHandler,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        *,
        access: Access | None = None,
        max_bytes: int | None = None,
        metrics: Metrics | None = None,
        page: bool = False,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
    ):
        """Listen and answer.

        Args:
            handler: answers the requests, on its queue.
            host, port, access: see serving.embedded.server.Server.
            max_bytes: the largest body; by default the handler's limit. An image in base64 is a third larger.
            metrics: what to show to Prometheus; None for nothing.
            page: whether to show the page to try it, at `/`.
            timeout: the seconds that a request may take.

        Raises:
            OSError: the address is taken or not ours.
        """
        self.host = host
        self.api = RestApi(handler, handler.max_bytes if max_bytes is None else max_bytes, timeout)
        routes = [Route("/v1/{path:path}", self.api.respond, methods=["GET", "POST"])]
        if metrics is not None:
            metrics.gauge("overfeat_rest_requests", "REST requests that are read, wait or run.", lambda: self.api.held)
            routes.append(Route(METRICS_PATH, _metrics_page(metrics)))
        if page:
            routes += page_routes(handler.models)
        app = Starlette(routes=routes, exception_handlers={404: _unknown, 405: _unknown})
        require_free(host, port)
        self._socket = listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._server = uvicorn.Server(_config(_Entry(app, access, metrics), access))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="rest", daemon=True)
        self._thread.start()
        self._wait_until_started()

    @property
    def url(self) -> str:
        """Return the URL."""
        return f"{'https' if self._server.config.is_ssl else 'http'}://{bracketed(self.host)}:{self.port}"

    def stop(self, grace: float | None = None) -> None:
        """Reject new requests, let running ones finish within `grace` seconds (None: cancel them), and close."""
        seconds = max(grace or 0.0, _CLOSING_SECONDS)
        self._server.config.timeout_graceful_shutdown = seconds  # type: ignore[assignment]
        self._server.should_exit = True
        self._thread.join(seconds + _START_SECONDS)

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def _wait_until_started(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self._socket.close()
                raise OSError(f"the REST server did not start on {self.host}:{self.port}")
            time.sleep(0.005)


class _Entry:
    """Rejects requests without the token and counts responses; the page's own files need no token."""

    def __init__(self, app: ASGIApp, access: Access | None, metrics: Metrics | None):
        self._app = app
        self._access = access
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if self._metrics is not None and message["type"] == "http.response.start":
                self._metrics.responded(message["status"])
            await send(message)

        app = self._app if self._permits(scope) else error_response(HttpError(401, _NO_TOKEN))
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
    return error_response(HttpError(status, f"{HTTPStatus(status).phrase}: {request.method} {request.url.path}"))
