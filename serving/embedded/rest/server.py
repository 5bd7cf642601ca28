"""The REST port of the embedded server: TF Serving's API, Prometheus metrics, and a page to try it, over HTTP."""

import asyncio
import logging
import re
import ssl
import threading
import time
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import unquote

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.embedded.access import Access, bracketed, listen
from serving.embedded.handler import RequestHandler
from serving.embedded.rest.api import RestApi, error_response
from serving.embedded.rest.metrics import CONTENT_TYPE, METRICS_PATH, Metrics
from serving.embedded.rest.page import OPEN_PATHS, page_routes

DEFAULT_PORT = 8501
_MAX_CONNECTIONS = 1000
# Longer than clients and proxies keep an idle connection, so that none is closed under the next request.
_KEEP_ALIVE_SECONDS = 75
_START_SECONDS = 30.0
_CLOSING_SECONDS = 0.5  # for idle connections
_PROBE_SECONDS = 2.0  # between looks whether a client that has closed its sending side is still there
_ABSOLUTE = re.compile(rb"(?i)https?://[^/]*")  # what a request for a proxy has before the path (RFC 9112, 3.2.2)
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
        page: bool = False,
    ):
        """Listen and answer, with the page to try it at `/` if `page`.

        Raises:
            OSError: the address is taken or not ours.
        """
        self.host = host
        self.api = RestApi(handler)
        metrics = Metrics(handler)
        metrics.gauge("overfeat_rest_requests", "REST requests that are read, wait or run.", lambda: self.api.held)
        routes = [
            Route("/v1/{path:path}", self.api.respond, methods=["GET", "POST"]),
            Route(METRICS_PATH, lambda _: Response(metrics.page(), media_type=CONTENT_TYPE)),
        ]
        if page:
            routes += page_routes(handler.models)
        app = Starlette(routes=routes, exception_handlers={404: _unknown, 405: _unknown})
        self._socket = listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        access = access or Access()
        self._server = uvicorn.Server(_config(_guarded(app, access), access))
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


def _guarded(app: ASGIApp, access: Access) -> ASGIApp:
    """Reject requests without the token, which the page's own files do not need; a path may be in absolute form."""

    async def enter(scope: Scope, receive: Receive, send: Send) -> None:
        if absolute := _ABSOLUTE.match(scope["raw_path"]):
            path = scope["raw_path"][absolute.end() :] or b"/"
            scope.update(raw_path=path, path=unquote(path.decode("ascii")))
        permitted = scope["path"] in OPEN_PATHS or access.permits(Headers(scope=scope).get("authorization"))
        await (app if permitted else error_response(HTTPException(401, _NO_TOKEN)))(scope, receive, send)

    return enter


class _Protocol(H11Protocol):
    """HTTP/1.1 for clients that vanish, and for those that close their sending side after a request (RFC 9112, 9.6)."""

    _half_closed = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._limit_idling()

    def data_received(self, data: bytes) -> None:
        begins = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        limit = None if begins else self.timeout_keep_alive_task
        super().data_received(data)
        self._limit_idling(None if limit is None else limit.when())

    def _limit_idling(self, end: float | None = None) -> None:
        """Also close a connection that brings no whole head of a request; uvicorn waits for a first one for ever.

        `end` is when a head that has begun to arrive must be whole.
        """
        if self.timeout_keep_alive_task is None and not self._is_answering():
            end = end or self.loop.time() + self.timeout_keep_alive
            self.timeout_keep_alive_task = self.loop.call_at(end, self.timeout_keep_alive_handler)

    def eof_received(self) -> bool:  # type: ignore[override] # asyncio keeps the connection if told so
        """Keep the connection for the answer that is due; without one, or over TLS, which cannot, close it."""
        complete = self.conn.their_state in (h11.DONE, h11.MUST_CLOSE)
        self._half_closed = complete and self._is_answering() and self.transport.get_extra_info("ssl_object") is None
        if self._half_closed:
            self.loop.call_later(_PROBE_SECONDS, self._probe)
        return self._half_closed

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._half_closed and not self._is_answering():  # there may be another request, sent with the first
            self.transport.close()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _probe(self) -> None:
        """Send a `100 Continue`, which clients ignore: it fails where the client has gone, which cancels its request.

        A client that has left and one that still reads look the same otherwise.
        """
        if self._is_answering() and self.conn.our_state is h11.SEND_RESPONSE and not self.transport.is_closing():
            if self.conn.their_http_version != b"1.0":
                self.transport.write(self.conn.send(h11.InformationalResponse(status_code=100, headers=[])))
            self.loop.call_later(_PROBE_SECONDS, self._probe)


def _config(app: ASGIApp, access: Access) -> uvicorn.Config:
    tls: dict[str, Any] = {"ssl_certfile": access.cert, "ssl_keyfile": access.key, "ssl_ca_certs": access.client_ca}
    return uvicorn.Config(
        app,
        http=_Protocol,
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
