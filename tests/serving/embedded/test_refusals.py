"""What the server refuses, against the table of what TF Serving answers."""

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from small_model import png
from stock_requests import (
    asking,
    call,
    classify_request,
    good_request,
    metadata_request,
    multi_request,
    predict_request,
    regress_request,
    status_request,
    tensor_proto,
)
from tensorflow_serving.apis import (
    model_management_pb2,
)

from serving.embedded.rest.server import RestServer

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED


def _refusal(channel: grpc.Channel, method: str, request, timeout: float = 20.0) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, request, timeout)
    return caught.value


def _two_models():
    request = multi_request("classify", "classify_twin")
    request.tasks[1].model_spec.name = "other"
    return request


def _many_examples():
    request = multi_request("classify")
    request.input.example_list_with_context.examples.extend(classify_request(*[b""] * 1025).input.example_list.examples)
    return request


REFUSED = {
    "unknown model": ("Predict", predict_request(model="nobody"), NOT_FOUND, "request: Latest(nobody)"),
    "unknown version": (
        "Predict",
        good_request(version=9),
        NOT_FOUND,
        "Servable not found for request: Specific(m, 9)",
    ),
    "no model": ("Predict", predict_request(model=""), INVALID, "ModelSpec has no name specified."),
    "unknown label": ("Predict", good_request(label="nope"), INVALID, "Unrecognized servable version label: nope"),
    "unknown signature": (
        "Predict",
        predict_request("nope", image_bytes=[png()]),
        PRECONDITION,
        'Serving signature key "nope" not found.',
    ),
    "missing input": (
        "Predict",
        predict_request(),
        INVALID,
        "input size does not match signature: 0!=1 len({}) != len({image_bytes}). Sent extra: {}. "
        "Missing but required: {image_bytes}.",
    ),
    "extra input": (
        "Predict",
        predict_request(image_bytes=[png()], more=[1]),
        INVALID,
        "2!=1 len({image_bytes,more}) != len({image_bytes}). Sent extra: {more}. Missing but required: {}.",
    ),
    "misnamed input": (
        "Predict",
        predict_request(imgs=[png()]),
        INVALID,
        "Signature input alias: image_bytes(feed name: serving_default_image_bytes:0) not found in request and no "
        "default value provided. Inputs sent: {imgs}.",
    ),
    "wrong dtype": (
        "Predict",
        predict_request(image_bytes=np.zeros(1, np.float32)),
        INVALID,
        "Expects arg[0] to be string but float is provided",
    ),
    "rank too low": ("Predict", predict_request(image_bytes=png()), INVALID, "shape [?] but [] is provided"),
    "rank too high": ("Predict", predict_request(image_bytes=[[png()]]), INVALID, "shape [?] but [1,1] is provided"),
    "unknown output": (
        "Predict",
        good_request(output_filter=["nope"]),
        INVALID,
        "output tensor alias not found in signature: nope Outputs expected to be in the set {detection_boxes,",
    ),
    "repeated output": (
        "Predict",
        good_request(output_filter=["status", "status"]),
        INVALID,
        "duplicate output tensor alias: status",
    ),
    "negative dimension": (
        "Predict",
        predict_request(image_bytes=tensor_proto(tf.string, [-1], string_val=[png()])),
        INVALID,
        "tensor parsing error: image_bytes",
    ),
    "content of another size": (
        "Predict",
        predict_request("detect_images", images=tensor_proto(tf.uint8, [1, 2, 2, 3], tensor_content=b"12345")),
        INVALID,
        "tensor parsing error: images",
    ),
    "gigantic image, one value": (
        "Predict",
        predict_request("detect_images", images=tensor_proto(tf.uint8, [1, 100000, 100000, 3], int_val=[7])),
        INVALID,
        "declares 30000000000 bytes",
    ),
    "no gigantic images": (
        "Predict",
        predict_request("detect_images", images=tensor_proto(tf.uint8, [0, 100000, 100000, 3])),
        INVALID,
        "declares 30000000000 bytes",
    ),
    "gigantic number of strings": (
        "Predict",
        predict_request(image_bytes=tensor_proto(tf.string, [1 << 40], string_val=[b"x"])),
        INVALID,
        "expected at most 1024 rows in one request, got 1099511627776 of image_bytes",
    ),
    "many tiny images": (
        "Predict",
        predict_request("detect_images", images=tensor_proto(tf.uint8, [1025, 1, 1, 3], int_val=[7])),
        INVALID,
        "expected at most 1024 rows in one request, got 1025 of images: send more requests",
    ),
    "a long string, often": (
        "Predict",
        predict_request(image_bytes=tensor_proto(tf.string, [1024], string_val=[bytes(100_000)])),
        INVALID,
        "more than the",
    ),
    "many examples": ("Classify", classify_request(*[b""] * 1025), INVALID, "got 1025 examples"),
    "many examples, several tasks": ("MultiInference", _many_examples(), INVALID, "got 1025 examples"),
    "a million dimensions": (
        "Predict",
        predict_request(image_bytes=tensor_proto(tf.string, [1, *[1 << 62] * 100_000])),
        INVALID,
        "tensor parsing error: image_bytes",
    ),
    "one row is no image": (
        "Predict",
        predict_request(image_bytes=[png(), b"nope"]),
        INVALID,
        "Unknown image file format.",
    ),
    "classify, three outputs and more": (
        "Classify",
        classify_request(png(), signature="detect"),
        INVALID,
        "Expected one or two output Tensors, found 7",
    ),
    "classify, unknown signature": (
        "Classify",
        classify_request(png(), signature="nope"),
        INVALID,
        "No signature was found with the name: nope",
    ),
    "classify nothing": ("Classify", classify_request(), INVALID, "Input is empty."),
    "classify, not a classifier": (
        "Classify",
        classify_request(png(), signature="spin"),
        INVALID,
        "No classification inputs found in SignatureDef",
    ),
    "regress": ("Regress", regress_request("detect"), INVALID, "Expected one output Tensor."),
    "regress, one output": ("Regress", regress_request("spin"), INVALID, "No regression inputs found in SignatureDef"),
    "regression among several tasks": (
        "MultiInference",
        multi_request("spin", method="tensorflow/serving/regress"),
        INVALID,
        "No regression inputs found in SignatureDef",
    ),
    "the signature of the loader": (
        "Predict",
        predict_request("__saved_model_init_op", image_bytes=[png()]),
        INVALID,
        "1!=0 len({image_bytes}) != len({}). Sent extra: {image_bytes}. Missing but required: {}.",
    ),
    "two tasks alike": (
        "MultiInference",
        multi_request("classify", "classify"),
        INVALID,
        "Duplicate evaluation of signature: classify",
    ),
    "two models": ("MultiInference", _two_models(), INVALID, "must access the same model name."),
    "two inputs": (
        "MultiInference",
        multi_request("classify", "classify_twin"),
        INVALID,
        "Input tensor must be the same for all Signatures.",
    ),
    "unknown method": (
        "MultiInference",
        multi_request("classify", method="guess"),
        UNIMPLEMENTED,
        "method_name: guess",
    ),
    "no tasks": ("MultiInference", multi_request(), INVALID, "ModelSpec has no name specified."),
    "another field": (
        "GetModelMetadata",
        metadata_request("signature_def", "x"),
        INVALID,
        "Metadata field x is not supported",
    ),
    "no field": (
        "GetModelMetadata",
        metadata_request(),
        INVALID,
        "GetModelMetadataRequest must specify at least one metadata_field",
    ),
    "metadata of nobody": ("GetModelMetadata", metadata_request("signature_def", model="x"), NOT_FOUND, "Latest(x)"),
    "metadata of a version that is not": (
        "GetModelMetadata",
        asking(metadata_request("signature_def"), version=9),
        NOT_FOUND,
        "Servable not found for request: Specific(m, 9)",
    ),
    "status of nobody": ("GetModelStatus", status_request("x"), NOT_FOUND, "Could not find any versions of model x"),
    "status, version": ("GetModelStatus", status_request(version=9), NOT_FOUND, "Could not find version 9 of model m"),
    "reload without a list": (
        "HandleReloadConfigRequest",
        model_management_pb2.ReloadConfigRequest(),
        INVALID,
        "Only ModelConfigList is currently supported",
    ),
}


def test_many_rows_are_refused_over_rest_too(server):
    with RestServer(server.handler, port=0) as rest:
        body = {"signature_name": "spin", "inputs": [0.0] * 1025}
        answer = httpx.post(f"{rest.url}/v1/models/m:predict", json=body, timeout=20)
    assert answer.status_code == 400 and "at most 1024 rows" in answer.json()["error"]


@pytest.mark.parametrize(("method", "request_", "code", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses_as_tf_serving_does(channel, method, request_, code, message):
    error = _refusal(channel, method, request_)
    assert (error.code(), message in error.details()) == (code, True), error.details()


def test_a_message_too_long_for_a_header_is_cut(channel):
    error = _refusal(channel, "Predict", predict_request(**{"x" * 100_000: [png()]}))
    assert error.code() is INVALID
    assert error.details().startswith("Signature input alias: image_bytes")
    assert error.details().endswith("...")


def test_a_missing_feature_is_refused_with_its_name(channel):
    request = classify_request(png())
    request.input.example_list.examples.add()
    error = _refusal(channel, "Classify", request)
    assert error.code() is INVALID
    assert "image/encoded" in error.details()


def test_an_example_whose_bytes_the_reason_quotes_is_refused(channel):
    error = _refusal(channel, "Predict", predict_request("classify", inputs=[b"\x0a\xcf\xa2 no example"]))
    assert error.code() is INVALID
    assert error.details().startswith("Could not parse example input, value: '")
