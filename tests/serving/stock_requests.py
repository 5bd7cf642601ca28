"""Requests for the small model, `m`, made of the stock messages, and a call through the stock stubs."""

from pathlib import Path

import grpc
import tensorflow as tf
from small_model import png
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from overfeat_tf.images.files import image_example
from serving.version_folders import WARMUP_FILE


def call(channel: grpc.Channel, method: str, request, timeout: float = 20.0):
    """Calls a method of whichever service has it."""
    stubs = prediction_service_pb2_grpc.PredictionServiceStub(channel), model_service_pb2_grpc.ModelServiceStub(channel)
    stub = next(stub for stub in stubs if hasattr(stub, method))
    return getattr(stub, method)(request, timeout=timeout)


def predict_request(signature: str = "", model: str = "m", **inputs) -> predict_pb2.PredictRequest:
    """Makes a Predict request of arrays or of ready tensor protos."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for name, value in inputs.items():
        proto = value if isinstance(value, tensor_pb2.TensorProto) else tf.make_tensor_proto(value)
        request.inputs[name].CopyFrom(proto)
    return request


def classify_request(*images: bytes, signature: str = "classify") -> classification_pb2.ClassificationRequest:
    """Makes a Classify request."""
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = "m"
    request.model_spec.signature_name = signature
    request.input.example_list.examples.extend(map(image_example, images))
    return request


def write_warmup(version_dir: Path, *requests) -> None:
    """Writes the requests beside a model, to be replayed when it is loaded."""
    file = version_dir / WARMUP_FILE
    file.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for request in requests:
            log = prediction_log_pb2.PredictionLog()
            is_predict = isinstance(request, predict_pb2.PredictRequest)
            (log.predict_log if is_predict else log.classify_log).request.CopyFrom(request)
            writer.write(log.SerializeToString())


def asking(request, **spec):
    """Sets a request's version, label or output filter."""
    if "version" in spec:
        request.model_spec.version.value = spec["version"]
    if "label" in spec:
        request.model_spec.version_label = spec["label"]
    if "output_filter" in spec:
        request.output_filter.extend(spec["output_filter"])
    return request


def tensor_proto(dtype: tf.DType, shape: list[int], **values):
    """Makes a tensor proto whose shape and values need not agree."""
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum, **values)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


def multi_request(*keys: str, method: str = "tensorflow/serving/classify", model: str = "m"):
    """Makes a MultiInference request with a task for each signature."""
    request = inference_pb2.MultiInferenceRequest(input=classify_request(png()).input)
    for key in keys:
        request.tasks.add(method_name=method, model_spec={"name": model, "signature_name": key})
    return request


def regress_request(key: str):
    """Makes a Regress request."""
    return regression_pb2.RegressionRequest(model_spec={"name": "m", "signature_name": key})


def metadata_request(*fields: str, model: str = "m"):
    """Makes a GetModelMetadata request."""
    return get_model_metadata_pb2.GetModelMetadataRequest(model_spec={"name": model}, metadata_field=fields)


def status_request(model: str = "m", version: int | None = None):
    """Makes a GetModelStatus request."""
    request = get_model_status_pb2.GetModelStatusRequest(model_spec={"name": model})
    return request if version is None else asking(request, version=version)


def good_request(**spec):
    """Makes a Predict request that is answered, of a version, a label or some outputs if told."""
    return asking(predict_request(image_bytes=[png()]), **spec)
