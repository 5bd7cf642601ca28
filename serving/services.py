"""TF Serving's two gRPC services: each method goes through the door, and a Refusal becomes a status."""

import time
from collections.abc import Callable
from typing import Any

import grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from serving.door import Door
from serving.refusal import Refusal


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers tensorflow.serving.PredictionService."""

    def __init__(self, door: Door):
        """Takes who answers."""
        self.Predict = _with_deadline(door.predict)
        self.Classify = _with_status(door.classify)
        self.Regress = _with_status(door.regress)
        self.MultiInference = _with_status(door.multi_inference)
        self.GetModelMetadata = _with_status(door.metadata)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """Answers tensorflow.serving.ModelService."""

    def __init__(self, door: Door):
        """Takes who answers."""
        self.GetModelStatus = _with_status(door.status)
        self.HandleReloadConfigRequest = _with_status(door.reload)


def _with_status(method: Callable[[Any], Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
    """Makes a gRPC handler of a method of the door."""

    def handle(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(request)
        except Refusal as refusal:
            context.abort(refusal.code, refusal.message)

    return handle


def _with_deadline(method: Callable[..., Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
    """Makes a gRPC handler of a method that may wait: it learns when, and whether, the client has given up.

    A request that waited for a thread past its deadline does not come this far: gRPC drops it.
    """

    def handle(request: Any, context: grpc.ServicerContext) -> Any:
        left = context.time_remaining()
        deadline = None if left is None else time.monotonic() + left
        return _with_status(lambda asked: method(asked, deadline, lambda: not context.is_active()))(request, context)

    return handle
