"""What the server says over gRPC: each method goes through the door, and a Refusal becomes a status."""

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

from serving.embedded.door import Door
from serving.refusal import Refusal

PREDICTION = prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name
MODEL = model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers tensorflow.serving.PredictionService."""

    def __init__(self, door: Door, pool: futures.ThreadPoolExecutor):
        """Takes who answers, and whose threads compute."""
        self.Predict = _computing(door.predict, pool)
        self.Classify = _computing(door.classify, pool)
        self.Regress = _computing(door.regress, pool)
        self.MultiInference = _computing(door.multi_inference, pool)
        self.GetModelMetadata = _handler(door.metadata)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """Answers tensorflow.serving.ModelService."""

    def __init__(self, door: Door, reloading: futures.ThreadPoolExecutor):
        """Takes who answers, and whose thread loads what another configuration wants, for minutes perhaps."""
        self.GetModelStatus = _handler(door.status)
        self.HandleReloadConfigRequest = _on(reloading, _handler(door.reload))


class Health(health.HealthServicer):
    """Answers grpc.health.v1.Health: of the server as a whole, "", and of each service."""

    def __init__(self) -> None:
        """Says that all is well."""
        super().__init__()
        for name in ("", PREDICTION, MODEL):
            self.set(name, health_pb2.HealthCheckResponse.SERVING)


def add_services(
    server: grpc.Server,
    door: Door,
    pool: futures.ThreadPoolExecutor,
    reloading: futures.ThreadPoolExecutor,
    reflecting: futures.ThreadPoolExecutor,
) -> Health:
    """Adds all services, each kind of method on threads of its own, the short ones on the server's; gives the health.

    Args:
        server: what answers.
        door: through which requests go.
        pool: for those that compute.
        reloading: for changes of the configuration.
        reflecting: for reflection, whose clients hold a thread as long as they are connected.
    """
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(door, pool), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(door, reloading), server)
    checks = Health()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    names = (PREDICTION, MODEL, health.SERVICE_NAME, reflection.SERVICE_NAME)
    servicer = reflection.ReflectionServicer(names)
    answer = servicer.ServerReflectionInfo
    servicer.ServerReflectionInfo = _on(reflecting, lambda asked, context: answer(asked, context))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    return checks


def _handler(method: Callable[[Any], Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
    """Makes a gRPC handler of a method of the door."""

    def handle(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(request)
        except Refusal as refusal:
            context.abort(refusal.code, refusal.message)

    return handle


def _computing(method: Callable[..., Any], pool: futures.ThreadPoolExecutor) -> Callable:
    """Makes a gRPC handler of a method that may wait: it learns when, and whether, the client has given up.

    A request that waited for a thread past its deadline, or whose client is gone, does not come this far: gRPC
    drops it.
    """

    def handle(request: Any, context: grpc.ServicerContext) -> Any:
        left = context.time_remaining()
        deadline = None if left is None else time.monotonic() + left
        return _handler(lambda asked: method(asked, deadline, lambda: not context.is_active()))(request, context)

    return _on(pool, handle)


def _on(pool: futures.ThreadPoolExecutor, handle: Any) -> Any:
    handle.experimental_thread_pool = pool  # where gRPC looks for a handler's own
    return handle
