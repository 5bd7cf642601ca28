"""TF Serving's REST API: which path asks for what, and its answers and errors in JSON."""

import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from starlette.concurrency import run_in_threadpool
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

from serving.embedded.door import Door
from serving.embedded.turns import require_time
from serving.refusal import Refusal, invalid, refusal_of
from serving.rest import documents
from serving.rest.answers import (
    HTTP_CODES,
    classify_json,
    dumps,
    metadata_json,
    predict_json,
    regress_json,
    status_json,
)
from serving.rest.intake import HttpRefusal, Intake

Gone = Callable[[], bool]

# How long a request may take, its waiting included; TF Serving's own default.
DEFAULT_TIMEOUT_SECONDS = 30.0
_MODEL = r"(?i)/v1/models(?:/([^/:]+))?(?:/versions/(\d+)|/labels/([^/:]+))?"
_PREDICTION = re.compile(_MODEL + r":(predict|classify|regress)")
_DESCRIPTION = re.compile(_MODEL + r"(/metadata)?")
_VERSION_DIGITS = 19  # of an int64
_CLIENT_GONE = 499  # nginx's number, and TF Serving's; nobody reads it

_log = logging.getLogger(__name__)


class RestApi:
    """Answers everything below /v1/."""

    def __init__(self, door: Door, intake: Intake, timeout: float = DEFAULT_TIMEOUT_SECONDS):
        """Takes what answers, what holds requests in the meantime, and how many seconds one may take."""
        self._door = door
        self._intake = intake
        self._timeout = timeout
        # One body at a time is taken apart: Python could not do two at once, and their memory would add up.
        self._reading = threading.Lock()

    async def respond(self, request: Request) -> Response:
        """Answers a request, or says in JSON why not."""
        try:
            return Response(await self._answer(request), media_type="application/json")
        except ClientDisconnect:
            return Response(status_code=_CLIENT_GONE)
        except Exception as error:
            return refused(error)

    async def _answer(self, request: Request) -> bytes:
        path = request.scope["raw_path"].decode("ascii")
        if request.method == "POST" and (match := _PREDICTION.fullmatch(path)):
            *asked, method = match.groups()
            spec, deadline = _model_spec(*asked), time.monotonic() + self._timeout
            answer = {"predict": self._predict, "classify": self._classify, "regress": self._regress}[method.lower()]
            async with self._intake.body(request) as body:
                return await self._intake.run(request, lambda gone: answer(spec, body, deadline, gone))
        if request.method in ("GET", "HEAD") and (match := _DESCRIPTION.fullmatch(path)):
            *asked, metadata = match.groups()
            return await run_in_threadpool(self._metadata if metadata else self._status, _model_spec(*asked))
        raise invalid(f"Malformed request: {request.method} {path}")

    def _predict(self, spec: model_pb2.ModelSpec, body: bytearray, deadline: float, gone: Gone) -> bytes:
        with self._reading:
            request, by_row = self._read_predict(spec, body)
        require_time(deadline)
        return predict_json(self._door.predict(request, deadline, gone), by_row)

    def _read_predict(self, spec: model_pb2.ModelSpec, body: bytearray) -> tuple[predict_pb2.PredictRequest, bool]:
        document = documents.parse(body)
        spec.signature_name = documents.signature_name(document)
        request = predict_pb2.PredictRequest(model_spec=spec)
        try:
            signature = self._door.models.find(request).signature_def(spec.signature_name)
        except Refusal:
            signature = None
        if signature is None:
            return request, False  # the door says, and counts, what is wrong
        tensors, by_row = documents.tensors(document, signature.inputs)
        for name, tensor in tensors.items():
            request.inputs[name].CopyFrom(tensor)
        return request, by_row

    def _classify(self, spec: model_pb2.ModelSpec, body: bytearray, deadline: float, gone: Gone) -> bytes:
        with self._reading:
            request = classification_pb2.ClassificationRequest(**_examples(spec, body))
        require_time(deadline)
        return classify_json(self._door.classify(request, deadline, gone))

    def _regress(self, spec: model_pb2.ModelSpec, body: bytearray, deadline: float, gone: Gone) -> bytes:
        with self._reading:
            request = regression_pb2.RegressionRequest(**_examples(spec, body))
        require_time(deadline)
        return regress_json(self._door.regress(request, deadline, gone))

    def _status(self, spec: model_pb2.ModelSpec) -> bytes:
        return status_json(self._door.status(get_model_status_pb2.GetModelStatusRequest(model_spec=spec)))

    def _metadata(self, spec: model_pb2.ModelSpec) -> bytes:
        request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
        return metadata_json(self._door.metadata(request))


def refused(error: Exception) -> Response:
    """Writes `{"error": ...}` with the HTTP code of whatever was raised."""
    if isinstance(error, HttpRefusal):
        status, message = error.status, error.message
    else:
        refusal = refusal_of(error)
        status, message = HTTP_CODES.get(refusal.code, 500), refusal.message
        if not isinstance(error, Refusal):
            _log.error("a request failed", exc_info=error)
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(status)
    return Response(dumps({"error": message}), status, headers, "application/json")


def _model_spec(name: str | None, version: str | None, label: str | None) -> model_pb2.ModelSpec:
    if not name:
        raise invalid("Missing model name in request.")
    spec = model_pb2.ModelSpec(name=_unquoted(name))
    if version is not None:
        if len(version) > _VERSION_DIGITS or int(version) >= 2**63:
            raise invalid(f"Failed to convert version: {version} to numeric.")
        spec.version.value = int(version)
    elif label is not None:
        spec.version_label = _unquoted(label)
    return spec


def _examples(spec: model_pb2.ModelSpec, body: bytearray) -> dict[str, Any]:
    document = documents.parse(body)
    spec.signature_name = documents.signature_name(document)
    return {"model_spec": spec, "input": documents.examples(document)}


def _unquoted(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise invalid(f"Failed to decode model name or label: {text}") from None
