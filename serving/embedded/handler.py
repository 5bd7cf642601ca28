"""Handles requests of any protocol: TF Serving's request messages in, its response messages or a StatusError out.

gRPC and REST only translate. Every request is counted and timed here, once.
"""

import functools
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import grpc
from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2

from serving.embedded import inference
from serving.embedded.request_queue import RequestContext, RequestQueue
from serving.embedded.servables import Models
from serving.embedded.version_manager import VersionManager
from serving.errors import StatusError, invalid, to_status_error

# A row costs a scan, and takes as little as a byte in a message: a small request could ask for hours of work.
DEFAULT_MAX_ROWS = 1024
# Running and waiting requests together. Clients retry the UNAVAILABLE that further ones get.
DEFAULT_MAX_REQUESTS = 128
# Takes each request once it has ended: method, which a client may have made up, model, empty if unknown, the version
# that answered, code, seconds and entry point.
Observer = Callable[[str, str, int | None, grpc.StatusCode, float, str], None]
_NO_DEADLINE = RequestContext()
_MESSAGES_WAITING = 8  # of the largest size: as many bytes may wait
_log = logging.getLogger(__name__)


def _observed(name: str) -> Callable[[Callable], Callable]:
    """Convert whatever a method raises to StatusError, and tell the observer, under the name of the RPC."""

    def wrap(method: Callable) -> Callable:
        @functools.wraps(method)
        def handle(self: "RequestHandler", request: Any, context: RequestContext = _NO_DEADLINE) -> Any:
            start = time.perf_counter()
            code, response = grpc.StatusCode.OK, None
            try:
                response = method(self, request, context)
                return response
            except StatusError as error:
                code, error.counted = error.code, True
                raise
            except Exception as error:
                status = to_status_error(error)
                code, status.counted = status.code, True
                if code is grpc.StatusCode.INTERNAL:
                    _log.exception("%s failed", name)
                try:
                    raise status from error
                finally:
                    del status  # or this frame keeps itself, and the request, until garbage collection
            finally:
                self._observe(name, request, response, code, time.perf_counter() - start, context.entrypoint)

        return handle

    return wrap


class RequestHandler:
    """Answers TF Serving's requests about the served models; safe to call from any thread.

    Every method raises StatusError and nothing else. Methods that run a model check the RequestContext before the first
    rows and between a few rows and the next.

    Attributes:
        models: what is served.
        queue: where the callers run the methods that run a model; these wait for a slot there.
        max_bytes: the most bytes that one tensor of a request may occupy.
        observer: called after every request; its exceptions are logged. May be set at any time.
    """

    def __init__(
        self,
        models: Models,
        max_bytes: int,
        *,
        version_manager: VersionManager | None = None,
        workers: int | None = None,
        max_requests: int = DEFAULT_MAX_REQUESTS,
        max_rows: int = DEFAULT_MAX_ROWS,
    ):
        """Make the queue.

        Args:
            version_manager: reloads the configuration; None if the models are fixed.
            workers: requests that run at the same time; by default one for each CPU, and at least four.
            max_requests: requests that run or wait; further ones are rejected.
            max_rows: the most images or examples in a request.
        """
        self.models = models
        self.max_bytes = max_bytes
        self.observer: Observer | None = None
        self._version_manager = version_manager
        self._max_rows = max_rows
        workers = min(workers or max(4, os.cpu_count() or 1), max_requests)
        self.queue = RequestQueue(workers, max_requests - workers, _MESSAGES_WAITING * max_bytes)

    @_observed("Predict")
    def predict(self, request: Any, context: RequestContext = _NO_DEADLINE) -> Any:
        return self._run(inference.predict, request, request, context)

    @_observed("Classify")
    def classify(self, request: Any, context: RequestContext = _NO_DEADLINE) -> Any:
        return self._run(inference.classify, request, request, context)

    @_observed("Regress")
    def regress(self, request: Any, context: RequestContext = _NO_DEADLINE) -> Any:
        """Raise StatusError: no signature of the contract is a regression."""
        inference.refuse_regression(self.models.find(request), request.model_spec.signature_name)

    @_observed("MultiInference")
    def multi_inference(self, request: Any, context: RequestContext = _NO_DEADLINE) -> Any:
        """Classify the same tf.Examples with several signatures of the model that the first task names."""
        if not request.tasks:
            raise invalid("ModelSpec has no name specified.")
        return self._run(inference.multi_inference, request, request.tasks[0], context)

    @_observed("GetModelMetadata")
    def metadata(self, request: Any, context: RequestContext = _NO_DEADLINE) -> Any:
        return inference.metadata(self.models, request)

    @_observed("GetModelStatus")
    def status(self, request: Any, context: RequestContext = _NO_DEADLINE) -> Any:
        """Return the states of a model's versions, newest first."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        states = self.models.states(request.model_spec)
        return get_model_status_pb2.GetModelStatusResponse(model_version_status=states)

    @_observed("HandleReloadConfigRequest")
    def reload(self, request: Any, context: RequestContext = _NO_DEADLINE) -> Any:
        """Replace the configuration; return once new models are loaded."""
        if self._version_manager is None:
            raise StatusError(grpc.StatusCode.UNIMPLEMENTED, "This server's models were given to it at its start.")
        self._version_manager.reload(request)
        response = model_management_pb2.ReloadConfigResponse()
        response.status.SetInParent()
        return response

    def rejected(
        self, method: str, code: grpc.StatusCode, request: Any = None, entrypoint: str = _NO_DEADLINE.entrypoint
    ) -> None:
        """Tell the observer of a request that was rejected before it was read, or could not be read in full."""
        self._observe(method, request, None, code, 0.0, entrypoint)

    def _run(self, answer: Callable, request: Any, asked: Any, context: RequestContext) -> Any:
        """Run the model that `asked`, a message with a ModelSpec, asks for, once there is a slot."""
        inference.require_rows(request, self._max_rows)
        servable = self.models.find(asked)
        with self.queue.slot(context, request.ByteSize()):
            return answer(servable, request, self.max_bytes, context.check)

    def _observe(
        self, method: str, request: Any, response: Any, code: grpc.StatusCode, seconds: float, entrypoint: str
    ) -> None:
        if self.observer is None:
            return
        if method == "MultiInference":
            request = request.tasks[0] if request is not None and request.tasks else None
            response = response.results[0] if response is not None else None
        name = request.model_spec.name if hasattr(request, "model_spec") else ""
        spec = getattr(response, "model_spec", None)
        version = spec.version.value if spec is not None and spec.HasField("version") else None
        try:
            self.observer(method, name if name in self.models.names else "", version, code, seconds, entrypoint)
        except Exception:
            _log.exception("the observer failed")
