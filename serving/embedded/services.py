"""The gRPC services: handlers that translate, the interceptor that rejects before a message is received, and health."""

import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from tensorflow_serving.apis import (
    model_service_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2,
    prediction_service_pb2_grpc,
)

from serving.embedded.access import Access
from serving.embedded.handler import RequestHandler
from serving.embedded.request_queue import RequestContext
from serving.errors import StatusError

PREDICTION = prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name
MODEL = model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name
# The methods that run a model, and therefore go through the request queue.
_QUEUED = frozenset(f"/{PREDICTION}/{name}" for name in ("Predict", "Classify", "Regress", "MultiInference"))


class Interceptor(grpc.ServerInterceptor):
    """Rejects calls without the token, and calls that find the queue full; health checks always pass."""

    def __init__(self, handler: RequestHandler, access: Access):
        self._handler = handler
        self._access = access

    def intercept_service(self, continuation: Callable, handler_call_details: Any) -> grpc.RpcMethodHandler | None:
        """Return the method's handler, or one that rejects the call."""
        path = handler_call_details.method
        if path.startswith(f"/{health.SERVICE_NAME}/"):
            return continuation(handler_call_details)
        try:
            if not self._access.permits(dict(handler_call_details.invocation_metadata).get("authorization")):
                message = "expected this server's token in the metadata: authorization: Bearer TOKEN"
                raise StatusError(grpc.StatusCode.UNAUTHENTICATED, message)
            if path in _QUEUED:
                self._handler.queue.require_space()
        except StatusError as error:
            return self._rejecting(path.rpartition("/")[2], error)
        return continuation(handler_call_details)

    def _rejecting(self, method: str, error: StatusError) -> grpc.RpcMethodHandler:
        """Make a handler that rejects; a streaming one, since the message of a stream need not be received."""
        code, message = error.code, error.message

        def reject(_: Any, context: grpc.ServicerContext) -> None:
            self._handler.rejected(method, StatusError(code, message))
            context.abort(code, message)

        return grpc.stream_unary_rpc_method_handler(reject)


def add_services(
    server: grpc.Server,
    handler: RequestHandler,
    reload_thread: futures.ThreadPoolExecutor,
    reflection_threads: futures.ThreadPoolExecutor,
) -> health.HealthServicer:
    """Add all services to a server and return its health, SERVING for the server ("") and both services.

    Reloads take minutes, and clients of reflection hold a thread while connected: both have threads of their own.
    """
    prediction = prediction_service_pb2_grpc.PredictionServiceServicer()
    prediction.Predict = _queued(handler, handler.predict)
    prediction.Classify = _queued(handler, handler.classify)
    prediction.Regress = _queued(handler, handler.regress)
    prediction.MultiInference = _queued(handler, handler.multi_inference)
    prediction.GetModelMetadata = _unary(handler.metadata)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(prediction, server)
    model = model_service_pb2_grpc.ModelServiceServicer()
    model.GetModelStatus = _unary(handler.status)
    model.HandleReloadConfigRequest = _run_on(reload_thread, _unary(handler.reload))
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(model, server)
    checks = health.HealthServicer()
    for name in ("", PREDICTION, MODEL):
        checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    servicer = reflection.ReflectionServicer((PREDICTION, MODEL, health.SERVICE_NAME, reflection.SERVICE_NAME))
    answer = servicer.ServerReflectionInfo
    servicer.ServerReflectionInfo = _run_on(reflection_threads, lambda request, context: answer(request, context))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    return checks


def _unary(method: Callable[[Any], Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
    """Make a gRPC handler of a RequestHandler's method."""

    def handle(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(request)
        except StatusError as error:
            context.abort(error.code, error.message)

    return handle


def _queued(handler: RequestHandler, method: Callable[..., Any]) -> Callable:
    """Make a gRPC handler that runs on the request queue; gRPC drops calls that end while they wait there."""

    def handle(request: Any, context: grpc.ServicerContext) -> Any:
        left = context.time_remaining()
        deadline = None if left is None else time.monotonic() + left
        wanted = RequestContext(deadline, lambda: not context.is_active())
        return _unary(lambda asked: method(asked, wanted))(request, context)

    return _run_on(handler.queue, handle)


def _run_on(pool: futures.ThreadPoolExecutor, handle: Any) -> Any:
    handle.experimental_thread_pool = pool  # gRPC's attribute for a handler's own threads
    return handle
