"""TF Serving's REST API below /v1/: reads requests, runs them on the server's queue, and writes answers and errors."""

import asyncio
import logging
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent import futures
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import unquote

import grpc
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
)

from serving.embedded.handler import RequestHandler
from serving.embedded.request_queue import CANCELLED, DEADLINE_EXCEEDED, RequestContext
from serving.embedded.rest import json_messages
from serving.errors import StatusError, invalid, to_status_error
from serving.version_folders import is_version

# How long a request may take, waiting included; TF Serving's default.
_TIMEOUT_SECONDS = 30.0
# All bodies that are held at a time, in bodies of the largest size.
_BODIES_HELD = 4
# How long a body may take to arrive: slow clients would otherwise hold all memory.
_BODY_SECONDS = 60.0
_MODEL = r"(?i)/v1/models(?:/([^/:]+))?(?:/versions/(\d+)|/labels/([^/:]+))?"
_PREDICTION = re.compile(_MODEL + r":(predict|classify|regress)")
_DESCRIPTION = re.compile(_MODEL + r"(/metadata)?")
# TF Serving's table (http_server.cc); other codes become 500.
_HTTP_CODES = {
    grpc.StatusCode.CANCELLED: 499,  # which nobody reads
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}

_log = logging.getLogger(__name__)


class RestApi:
    """Answers everything below /v1/. Its state belongs to the event loop's thread.

    Attributes:
        held: the requests that are read, wait or run.
    """

    def __init__(self, handler: RequestHandler):
        self.held = 0
        self._handler = handler
        self._max_bytes = handler.max_bytes  # of a body; an image in base64 is a third larger
        self._bytes_held = 0
        # One body at a time is parsed: Python cannot parse two at once, and their memory would add up.
        self._parsing = threading.Lock()

    async def respond(self, request: Request) -> Response:
        """Answer a request, with an error as JSON."""
        try:
            return Response(await self._answer(request), media_type="application/json")
        except Exception as error:
            return error_response(error)

    async def _answer(self, request: Request) -> bytes:
        path = request.scope["raw_path"].decode("ascii")
        if request.method == "POST" and (match := _PREDICTION.fullmatch(path)):
            *asked, method = match.groups()
            method, spec = method.lower(), _model_spec(*asked)
            try:
                answer = {"predict": self._predict, "classify": self._classify, "regress": self._regress}[method]
                async with self._body(request) as body:
                    deadline = time.monotonic() + _TIMEOUT_SECONDS
                    return await self._run(request, deadline, lambda context: answer(spec, body, context))
            except Exception as error:
                status = to_status_error(error) if not isinstance(error, HTTPException) else invalid(error.detail)
                if not status.counted:  # it has not reached the handler, which counts the others
                    about = predict_pb2.PredictRequest(model_spec={"name": spec.name})
                    self._handler.rejected(method.title(), status.code, about, "REST")
                raise
        if request.method in ("GET", "HEAD") and (match := _DESCRIPTION.fullmatch(path)):
            *asked, metadata = match.groups()
            return await run_in_threadpool(self._metadata if metadata else self._status, _model_spec(*asked))
        raise invalid(f"Malformed request: {request.method} {path}")

    @asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[bytearray]:
        """Read a request's body, and count it as held until the block ends."""
        self._handler.queue.require_space()
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, "expected a body without Content-Encoding")
        if int(request.headers.get("content-length", 0)) > self._max_bytes:  # the HTTP library has checked the number
            raise self._too_large()
        body = bytearray()
        self.held += 1
        try:
            await self._read(request, body)
            yield body
        except asyncio.CancelledError:
            # uvicorn cancels what takes longer than the grace, and would log a traceback for each.
            raise StatusError(grpc.StatusCode.UNAVAILABLE, "the server has stopped") from None
        finally:
            self.held -= 1
            self._bytes_held -= len(body)

    async def _read(self, request: Request, body: bytearray) -> None:
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    self._bytes_held += len(chunk)
                    if len(body) > self._max_bytes:
                        raise self._too_large()
                    if self._bytes_held > _BODIES_HELD * self._max_bytes:
                        message = "too many large requests at a time; try again later"
                        raise StatusError(grpc.StatusCode.UNAVAILABLE, message)
        except TimeoutError:
            raise HTTPException(408, f"expected the whole body within {_BODY_SECONDS:g} s") from None
        except ClientDisconnect:
            raise StatusError(*CANCELLED) from None

    async def _run(self, request: Request, deadline: float, answer: Callable[[RequestContext], bytes]) -> bytes:
        """Run a function on the queue, unless the client leaves or the deadline passes before it runs.

        Raises:
            StatusError: the queue is full, the client has left, or the deadline has passed.
        """
        self._handler.queue.require_space()
        cancelled = threading.Event()
        running = self._handler.queue.submit(answer, RequestContext(deadline, cancelled.is_set, "REST"))
        future = asyncio.wrap_future(running)
        watching = asyncio.create_task(_watch_disconnect(request, cancelled, running))
        try:
            done, _ = await asyncio.wait([future], timeout=deadline - time.monotonic())
            if not done and running.cancel():
                raise StatusError(*DEADLINE_EXCEEDED)
            return await future
        except asyncio.CancelledError:
            if cancelled.is_set():
                raise StatusError(*CANCELLED) from None
            raise
        finally:
            cancelled.set()
            future.cancel()
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    def _predict(self, spec: model_pb2.ModelSpec, body: bytearray, context: RequestContext) -> bytes:
        with self._parsing:
            context.check()
            request, by_row = self._parse_predict(spec, body)
        return json_messages.predict_json(self._handler.predict(request, context), by_row)

    def _parse_predict(self, spec: model_pb2.ModelSpec, body: bytearray) -> tuple[predict_pb2.PredictRequest, bool]:
        document = _parse(spec, body)
        request = predict_pb2.PredictRequest(model_spec=spec)
        signature = self._handler.models.find(request).signature_def(spec.signature_name)
        if signature is None:
            return request, False  # the handler raises the error
        tensors, by_row = json_messages.tensors(document, signature.inputs)
        for name, tensor in tensors.items():
            request.inputs[name].CopyFrom(tensor)
        return request, by_row

    def _classify(self, spec: model_pb2.ModelSpec, body: bytearray, context: RequestContext) -> bytes:
        request = classification_pb2.ClassificationRequest(**self._parse_examples(spec, body, context))
        return json_messages.classify_json(self._handler.classify(request, context))

    def _regress(self, spec: model_pb2.ModelSpec, body: bytearray, context: RequestContext) -> bytes:
        request = regression_pb2.RegressionRequest(**self._parse_examples(spec, body, context))
        return self._handler.regress(request, context)  # raises: no signature of the contract is a regression

    def _parse_examples(self, spec: model_pb2.ModelSpec, body: bytearray, context: RequestContext) -> dict[str, Any]:
        with self._parsing:
            context.check()
            return {"input": json_messages.examples(_parse(spec, body)), "model_spec": spec}

    def _status(self, spec: model_pb2.ModelSpec) -> bytes:
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=spec)
        return json_messages.dumps(json_messages.as_dict(self._handler.status(request)))

    def _metadata(self, spec: model_pb2.ModelSpec) -> bytes:
        request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
        return json_messages.metadata_json(self._handler.metadata(request))

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the body is larger than the {self._max_bytes} bytes that this server takes")


def error_response(error: Exception) -> Response:
    """Write `{"error": ...}` with the HTTP code of an exception."""
    if isinstance(error, HTTPException):  # one that has no gRPC code
        status, message = error.status_code, error.detail
    else:
        converted = to_status_error(error)
        status, message = _HTTP_CODES.get(converted.code, 500), converted.message
        if converted.code is grpc.StatusCode.INTERNAL and not isinstance(error, StatusError):
            _log.error("a request failed", exc_info=error)
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(status)
    return Response(json_messages.dumps({"error": message}), status, headers, "application/json")


async def _watch_disconnect(request: Request, cancelled: threading.Event, running: futures.Future) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    cancelled.set()
    running.cancel()


def _model_spec(name: str | None, version: str | None, label: str | None) -> model_pb2.ModelSpec:
    if not name:
        raise invalid("Missing model name in request.")
    spec = model_pb2.ModelSpec(name=_unquoted(name))
    if version is not None:
        if not is_version(version):
            raise invalid(f"Failed to convert version: {version} to numeric.")
        spec.version.value = int(version)
    elif label is not None:
        spec.version_label = _unquoted(label)
    return spec


def _parse(spec: model_pb2.ModelSpec, body: bytearray) -> dict[str, Any]:
    """Parse a body, and enter the signature that it names into its spec."""
    document = json_messages.parse(body)
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid("'signature_name' key must be a string value.")
    spec.signature_name = name
    return document


def _unquoted(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise invalid(f"Failed to decode model name or label: {text}") from None
