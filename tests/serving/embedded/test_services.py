"""What the two gRPC services answer, over a socket and the stock stubs."""

from concurrent import futures

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from small_model import png
from stock_requests import (
    asking,
    call,
    classify_request,
    good_request,
    metadata_request,
    multi_request,
    predict_request,
    status_request,
    tensor_proto,
)
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
)


@pytest.mark.parametrize(
    ("spec", "version"), [({}, 2), ({"version": 1}, 1), ({"label": "stable"}, 1), ({"label": "canary"}, 2)]
)
def test_predict_asks_the_version_meant(channel, spec, version):
    response = call(channel, "Predict", good_request(**spec))
    assert response.model_spec.name == "m"
    assert response.model_spec.version.value == version
    assert response.model_spec.signature_name == "serving_default"
    # The typed field: clients of the Object Detection API read it directly.
    assert list(response.outputs["detection_classes"].float_val) == [version]


def test_fewer_strings_than_declared_repeat_the_last(channel):
    request = predict_request(image_bytes=tensor_proto(tf.string, [3], string_val=[png(51)]))
    scores = call(channel, "Predict", request).outputs["detection_scores"]
    np.testing.assert_allclose(tf.make_ndarray(scores), [[0.2]] * 3, rtol=1e-6)


def test_an_empty_batch_is_answered_with_empty_outputs(channel):
    outputs = call(channel, "Predict", predict_request(image_bytes=tensor_proto(tf.string, [0]))).outputs
    assert {name: tf.make_ndarray(proto).shape[0] for name, proto in outputs.items()} == dict.fromkeys(outputs, 0)
    assert tf.make_ndarray(outputs["detection_boxes"]).shape == (0, 1, 4)


def test_images_and_bytes_are_answered_alike_and_filtered(channel):
    images = predict_request("detect_images", images=np.full((2, 4, 6, 3), 51, np.uint8))
    filtered = call(channel, "Predict", asking(images, output_filter=["detection_scores", "image_size"])).outputs
    encoded = call(channel, "Predict", predict_request("detect", image_bytes=[png(51)] * 2)).outputs
    assert set(filtered) == {"detection_scores", "image_size"}
    np.testing.assert_array_equal(tf.make_ndarray(filtered["image_size"]), [[4, 6]] * 2)
    for name, proto in filtered.items():
        np.testing.assert_allclose(tf.make_ndarray(proto), tf.make_ndarray(encoded[name]), rtol=1e-6)


def test_classify_and_multi_inference_answer_each_example_in_order(channel):
    short, long = png(size=(2, 2)), png() + b"padding"
    single = call(channel, "Classify", classify_request(short, long))
    rows = [[(each.label, each.score) for each in row.classes] for row in single.result.classifications]
    assert [dict(row)["long"] for row in rows] == [len(short), len(long)]
    tasks = multi_request("classify")
    tasks.input.CopyFrom(classify_request(short, long).input)
    (multi,) = call(channel, "MultiInference", tasks).results
    assert multi.classification_result == single.result
    assert multi.model_spec == single.model_spec


def test_examples_share_their_context(channel):
    request = classify_request(png())
    example = request.input.example_list.examples[0]
    request.input.example_list_with_context.context.CopyFrom(example)
    request.input.example_list_with_context.examples.add()
    (row,) = call(channel, "Classify", request).result.classifications
    assert row.classes[1].score == len(png())


def test_a_context_is_counted_with_each_example(channel, max_bytes):
    request = classify_request(*[png(51)] * 3)
    request.input.example_list_with_context.examples.extend([*request.input.example_list.examples])
    context = request.input.example_list_with_context.context.features.feature["note"].bytes_list
    context.value.append(b"x" * (max_bytes // 3))
    with pytest.raises(grpc.RpcError) as refused:
        call(channel, "Classify", request)
    assert "each with the context" in refused.value.details()


def test_clients_that_watch_the_health_and_leave_hold_nobody(server):
    def watch() -> None:
        with grpc.insecure_channel(server.address) as own:
            for _ in range(60):
                watching = health_pb2_grpc.HealthStub(own).Watch(health_pb2.HealthCheckRequest(), timeout=20)
                next(watching)
                watching.cancel()

    with futures.ThreadPoolExecutor(3) as pool:
        for each in [pool.submit(watch) for _ in range(3)]:
            each.result(60)
    with grpc.insecure_channel(server.address) as channel:
        assert call(channel, "Predict", good_request()).outputs


@pytest.mark.parametrize("path", ["/grpc.health.v1.Health/List", "/tensorflow.serving.PredictionService/Nope"])
def test_methods_that_the_server_does_not_offer_are_unimplemented(channel, path):
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(path)(b"", timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_metadata_describes_the_signatures(channel):
    packed = call(channel, "GetModelMetadata", metadata_request("signature_def")).metadata["signature_def"]
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert packed.Unpack(signatures)
    assert set(signatures.signature_def) >= {"serving_default", "detect", "detect_images", "classify"}
    assert signatures.signature_def["detect"].inputs["image_bytes"].dtype == tf.string.as_datatype_enum


def test_status_lists_versions_newest_first(channel):
    available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
    both = call(channel, "GetModelStatus", status_request()).model_version_status
    assert [(each.version, each.state, each.status.error_code) for each in both] == [
        (2, available, 0),
        (1, available, 0),
    ]
    one = call(channel, "GetModelStatus", status_request(version=1)).model_version_status
    assert [each.version for each in one] == [1]
    labelled = call(channel, "GetModelStatus", asking(status_request(), label="nope")).model_version_status
    assert list(labelled) == list(both)  # a label is ignored


def test_bytes_that_are_no_request_leave_the_server_answering(channel, max_bytes):
    raw = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    with pytest.raises(grpc.RpcError) as garbage:
        raw(b"\xff" * 100, timeout=10)
    with pytest.raises(grpc.RpcError) as too_large:
        raw(bytes(max_bytes + 1), timeout=10)
    assert garbage.value.code() is grpc.StatusCode.INTERNAL
    assert too_large.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert call(channel, "Predict", good_request()).outputs
