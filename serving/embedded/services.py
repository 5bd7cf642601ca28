"""The gRPC services: handlers that translate, the interceptor that rejects before a message is received, and health."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from serving.embedded.access import Access
from serving.embedded.handler import SERVICES, RequestHandler
from serving.embedded.request_queue import RequestContext
from serving.errors import StatusError

PREDICTION, MODEL = (service.full_name for service in SERVICES)
# The methods that run a model, and therefore go through the request queue.
_QUEUED = frozenset(f"/{PREDICTION}/{name}" for name in ("Predict", "Classify", "Regress", "MultiInference"))
# Threads by kind of call. Reloads take minutes, and clients of reflection and watches of the health hold a thread while
# connected, as does a call whose message does not arrive. The status of the health, on which the life of the process
# may depend, waits for none of the others.
THREADS = {"control": 4, "reload": 1, "reflection": 2, "watch": 16, "health": 16}


class Interceptor(grpc.ServerInterceptor):
    """Rejects calls without the token, and calls that find the queue full; health checks always pass."""

    def __init__(self, handler: RequestHandler, access: Access):
        self._handler = handler
        self._access = access

    def intercept_service(self, continuation: Callable, handler_call_details: Any) -> grpc.RpcMethodHandler | None:
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
            code, message = error.code, error.message
        else:
            return continuation(handler_call_details)

        def reject(_: Any, context: grpc.ServicerContext) -> None:
            self._handler.rejected(path.rpartition("/")[2], code)
            context.abort(code, message)

        return grpc.stream_unary_rpc_method_handler(reject)  # the message of a stream need not be received


def add_services(
    server: grpc.Server, handler: RequestHandler, pools: Mapping[str, ThreadPoolExecutor]
) -> health.HealthServicer:
    """Add all services, on the pools of `THREADS`, to a server, and return its health, which `set_health` sets."""
    prediction = prediction_service_pb2_grpc.PredictionServiceServicer()
    prediction.Predict = _run_on(handler.queue, _unary(handler.predict))
    prediction.Classify = _run_on(handler.queue, _unary(handler.classify))
    prediction.Regress = _run_on(handler.queue, _unary(handler.regress))
    prediction.MultiInference = _run_on(handler.queue, _unary(handler.multi_inference))
    prediction.GetModelMetadata = _unary(handler.metadata)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(prediction, server)
    model = model_service_pb2_grpc.ModelServiceServicer()
    model.GetModelStatus = _unary(handler.status)
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


def set_health(checks: health.HealthServicer, ready: bool) -> None:
    """Report SERVING or NOT_SERVING for the server ("") and both services."""
    response = health_pb2.HealthCheckResponse
    for name in ("", PREDICTION, MODEL):
        checks.set(name, response.SERVING if ready else response.NOT_SERVING)


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


def _run_on(pool: ThreadPoolExecutor, handle: Callable) -> Any:
    """Let a gRPC handler run on threads of its own; gRPC drops calls that end while they wait for one."""
    on_pool: Any = partial(handle)  # a bound method takes no attributes
    on_pool.experimental_thread_pool = pool  # gRPC's attribute for a handler's own threads
    return on_pool
