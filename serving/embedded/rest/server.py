"""The REST port of the embedded server: TF Serving's API, Prometheus metrics, and a page to try it, over HTTP."""

import logging
import ssl
import threading
import time
from contextlib import AbstractContextManager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.embedded.access import Access, bracketed, listen
from serving.embedded.handler import RequestHandler
from serving.embedded.rest.api import DEFAULT_TIMEOUT_SECONDS, RestApi, error_response
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
            routes.append(Route(METRICS_PATH, lambda _: Response(metrics.page(), media_type=CONTENT_TYPE)))
        if page:
            routes += page_routes(handler.models)
        app = Starlette(routes=routes, exception_handlers={404: _unknown, 405: _unknown})
        self._socket = listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        access = access or Access()
        self._server = uvicorn.Server(_config(_guarded(app, access, metrics), access))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="rest", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self._socket.close()
                raise OSError(f"the REST server did not start on {self.host}:{self.port}")
            time.sleep(0.005)

    @property
    def url(self) -> str:
        return f"{'https' if self._server.config.is_ssl else 'http'}://{bracketed(self.host)}:{self.port}"

    def stop(self, grace: float | None = None) -> None:
        """Reject new requests, let running ones finish within `grace` seconds (None: cancel them), and close."""
        seconds = max(grace or 0.0, _CLOSING_SECONDS)
        self._server.config.timeout_graceful_shutdown = seconds  # type: ignore[assignment]
        self._server.should_exit = True
        self._thread.join(seconds + _START_SECONDS)

    def __exit__(self, *_: Any) -> None:
        self.stop()


def _guarded(app: ASGIApp, access: Access, metrics: Metrics | None) -> ASGIApp:
    """Reject requests without the token and count responses; the page's own files need no token."""

    async def enter(scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if metrics is not None and message["type"] == "http.response.start":
                metrics.responded(message["status"])
            await send(message)

        permitted = scope["path"] in OPEN_PATHS or access.permits(Headers(scope=scope).get("authorization"))
        await (app if permitted else error_response(HTTPException(401, _NO_TOKEN)))(scope, receive, counted)

    return enter


def _config(app: ASGIApp, access: Access) -> uvicorn.Config:
    tls: dict[str, Any] = {"ssl_certfile": access.cert, "ssl_keyfile": access.key, "ssl_ca_certs": access.client_ca}
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
        ssl_cert_reqs=ssl.CERT_NONE if access.client_ca is None else ssl.CERT_REQUIRED,
        **tls,  # none without files
    )


async def _unknown(request: Request, error: Any) -> Response:
    return error_response(HTTPException(error.status_code, f"{error.detail}: {request.method} {request.url.path}"))
