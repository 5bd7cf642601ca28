"""The gRPC services: handlers that translate, the interceptor that rejects before a message is received, and health."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from tensorflow_serving.apis import (
    model_service_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2,
    prediction_service_pb2_grpc,
)

from serving.embedded.access import Access
from serving.embedded.handler import RequestHandler
from serving.embedded.request_queue import CallPool, RequestContext
from serving.errors import StatusError

PREDICTION = prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name
MODEL = model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name
_CHECK = f"/{health.SERVICE_NAME}/Check"  # open to all: liveness probes have no token
# Threads per kind of call. Reloads take minutes; reflection streams and health watches hold a thread while connected.
# Health checks, which a liveness probe may use, have their own.
THREADS = {"status": 4, "reload": 1, "reflection": 2, "watch": 64, "health": 16}
MAX_CALLS = 64  # of each kind
# How long a call's message may take to arrive, as a body of REST; calls without one would hold their threads for ever.
_MESSAGE_SECONDS = 60.0
_SMALL_MESSAGE_SECONDS = 5.0  # of calls that run no model
_log = logging.getLogger(__name__)


class Interceptor(grpc.ServerInterceptor):
    """Rejects calls without the token and calls of which there are too many, and limits how long a message may take."""

    def __init__(self, handler: RequestHandler, access: Access):
        self._handler = handler
        self._access = access

    def intercept_service(self, continuation: Callable, handler_call_details: Any) -> grpc.RpcMethodHandler | None:
        path = handler_call_details.method
        try:
            metadata = dict(handler_call_details.invocation_metadata)
            if path != _CHECK and not self._access.permits(metadata.get("authorization")):
                message = "expected this server's token in the metadata: authorization: Bearer TOKEN"
                raise StatusError(grpc.StatusCode.UNAUTHENTICATED, message)
            method = continuation(handler_call_details)
            behavior = method and (method.unary_unary or method.unary_stream or method.stream_stream)
            pool = getattr(behavior, "experimental_thread_pool", None)
            if pool is None:  # not a method of ours: gRPC answers UNIMPLEMENTED
                return None
            pool.require_space()
        except StatusError as error:
            code, message = error.code, error.message
        else:
            seconds = _MESSAGE_SECONDS if pool is self._handler.queue else _SMALL_MESSAGE_SECONDS
            return method if method.request_streaming else _receiving(method, pool, path, seconds)

        def reject(_: Any, context: grpc.ServicerContext) -> None:
            self._handler.rejected(path.rpartition("/")[2], code)
            context.abort(code, message)

        return grpc.stream_unary_rpc_method_handler(reject)  # the message of a stream need not be received


def add_services(server: grpc.Server, handler: RequestHandler, pools: Mapping[str, CallPool]) -> health.HealthServicer:
    """Add all services, on the pools of `THREADS`, to a server, and return its health."""
    prediction = prediction_service_pb2_grpc.PredictionServiceServicer()
    prediction.Predict = _run_on(handler.queue, _unary(handler.predict))
    prediction.Classify = _run_on(handler.queue, _unary(handler.classify))
    prediction.Regress = _run_on(handler.queue, _unary(handler.regress))
    prediction.MultiInference = _run_on(handler.queue, _unary(handler.multi_inference))
    prediction.GetModelMetadata = _run_on(pools["status"], _unary(handler.metadata))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(prediction, server)
    model = model_service_pb2_grpc.ModelServiceServicer()
    model.GetModelStatus = _run_on(pools["status"], _unary(handler.status))
    model.HandleReloadConfigRequest = _run_on(pools["reload"], _unary(handler.reload))
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(model, server)
    checks = health.HealthServicer()
    checks.Check = _run_on(pools["health"], checks.Check)
    # Blocking: as the library has it, two clients that watch deadlock the whole server
    # (https://github.com/grpc/grpc/pull/43403); and what it is told of threads holds for all servers of a process.
    checks.Watch = _run_on(pools["watch"], checks.Watch)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    servicer = reflection.ReflectionServicer((PREDICTION, MODEL, health.SERVICE_NAME, reflection.SERVICE_NAME))
    servicer.ServerReflectionInfo = _run_on(pools["reflection"], servicer.ServerReflectionInfo)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    return checks


def _unary(method: Callable[[Any, RequestContext], Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
    """Make a gRPC handler of a RequestHandler's method."""

    def handle(request: Any, context: grpc.ServicerContext) -> Any:
        left = context.time_remaining()
        deadline = None if left is None else time.monotonic() + left
        try:
            return method(request, RequestContext(deadline, lambda: not context.is_active()))
        except StatusError as error:
            context.abort(error.code, error.message)

    return handle


def _receiving(method: grpc.RpcMethodHandler, pool: CallPool, path: str, seconds: float) -> grpc.RpcMethodHandler:
    """Limit how long a method's one request message may take: a stream's handler runs before its messages arrive."""

    def handle(messages: Iterator[bytes], context: grpc.ServicerContext) -> Any:
        limit = threading.Timer(seconds, context.cancel)
        limit.daemon = True
        limit.start()
        try:
            message = next(messages, None)
        finally:
            limit.cancel()
        if message is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{path} requires exactly one request message.")
        try:
            request = method.request_deserializer(message)
        except Exception as error:
            _log.warning("%s: unreadable message: %s", path, error)
            context.abort(grpc.StatusCode.INTERNAL, "Exception deserializing request!")
        return (method.unary_unary or method.unary_stream)(request, context)

    make = grpc.stream_stream_rpc_method_handler if method.response_streaming else grpc.stream_unary_rpc_method_handler
    return make(_run_on(pool, handle), None, method.response_serializer)


def _run_on(pool: CallPool, handle: Callable) -> Any:
    """Let a gRPC handler run on threads of its own; gRPC drops calls that end while they wait for one."""
    on_pool: Any = partial(handle)  # a bound method takes no attributes
    on_pool.experimental_thread_pool = pool  # gRPC's attribute for a handler's own threads
    return on_pool
