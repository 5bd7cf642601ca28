"""A served model whose only signature is a Python function, such as one that waits until it may answer."""

import threading
from collections.abc import Callable

import grpc
import numpy as np
import tensorflow as tf
from stock_requests import predict_request
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc

from serving.contract import SIGNATURES
from serving.embedded.servables import Models, Servable
from serving.embedded.server import Server

X = predict_request(x=np.ones(1, np.float32))


def serve_function(function: Callable, **options) -> Server:
    """Serves `function_models`."""
    return Server(function_models(function), port=0, **options)


def function_models(function: Callable) -> Models:
    """Gives a model whose only signature is a Python function: `x` -> `y`, both float [?]."""
    vector = meta_graph_pb2.TensorInfo(dtype=tf.float32.as_datatype_enum)
    vector.tensor_shape.dim.add(size=-1)
    definition = meta_graph_pb2.SignatureDef(inputs={"x": vector}, outputs={"y": vector})
    return Models([Servable("m", 1, {"serving_default": definition}, {"serving_default": function})])


def contract_models(function: Callable, key: str = "classify_images") -> Models:
    """Gives a model whose only signature is a Python function with a signature of the contract."""
    signature = SIGNATURES[key]

    def info(spec: tf.TensorSpec) -> meta_graph_pb2.TensorInfo:
        return meta_graph_pb2.TensorInfo(dtype=spec.dtype.as_datatype_enum, tensor_shape=spec.shape.as_proto())

    outputs = {name: info(spec) for name, spec in signature.outputs.items()}
    definition = meta_graph_pb2.SignatureDef(inputs={signature.input.name: info(signature.input)}, outputs=outputs)
    return Models([Servable("m", 1, {key: definition}, {key: function})])


def predict(channel: grpc.Channel) -> Callable:
    return prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict


class Gate:
    """A signature's function that counts its calls and answers once the gate is open."""

    def __init__(self):
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        self.entered.release()
        assert self.open.wait(20)
        return {"y": x}


class Seen:
    """An observer that notes, and then fails, which must harm nobody."""

    def __init__(self):
        self.told = []

    def __call__(self, *request):
        self.told.append(request)
        raise RuntimeError("an observer's fault")
