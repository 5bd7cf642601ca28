"""The client against the embedded server, and against one that refuses."""

import contextlib
import time
from collections.abc import Iterator
from concurrent import futures

import grpc
import numpy as np
import pytest
import tensorflow as tf
from small_model import png
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.client.client import Client, ServingError
from serving.contract import SIGNATURES


@pytest.fixture(scope="module")
def client(server) -> Iterator[Client]:
    """Connects to the small model."""
    with Client(server.address, "m") as client:
        yield client


class _Refusing(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Refuses a number of times with one code, then answers with what it got."""

    def __init__(self, code: grpc.StatusCode, times: int):
        self.code, self.times, self.calls = code, times, 0

    def Predict(self, request, context):  # noqa: N802 - gRPC's name
        self.calls += 1
        if self.calls <= self.times:
            context.abort(self.code, "two\nlines")
        return predict_pb2.PredictResponse(outputs=request.inputs)


@contextlib.contextmanager
def _served(servicer: _Refusing) -> Iterator[Client]:
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(2), options=unlimited)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Client(f"127.0.0.1:{port}", "m", timeout=10) as client:
            yield client
    finally:
        server.stop(None).wait()


def test_detect_answers_with_the_contracts_arrays(client):
    outputs = client.detect([png(51), png(255, (3, 5))])
    expected = SIGNATURES["detect"].outputs
    assert {name: array.dtype for name, array in outputs.items()} == {
        name: spec.dtype.as_numpy_dtype for name, spec in expected.items()
    }
    np.testing.assert_allclose(outputs["detection_scores"], [[0.2], [1.0]], rtol=1e-6)
    np.testing.assert_array_equal(outputs["image_size"], [[4, 6], [3, 5]])
    assert outputs["detection_class_entities"].tolist() == [[b"dog"]] * 2
    assert outputs["status"].tolist() == [b"", b""]


def test_a_served_model_predicts_on_images_of_any_kind(client, tmp_path):
    (tmp_path / "image.png").write_bytes(png(255, (3, 5)))
    found = client.predict(tmp_path / "image.png")
    assert (found.names, found.size, found.boxes.shape) == (("dog",), (3, 5), (1, 4))
    answer = client.detect([png(255, (3, 5))])
    np.testing.assert_allclose(found.boxes, answer["detection_boxes"][0] * [3, 5, 3, 5])
    assert client.predict(png(51)).names == ()  # which scores 0.2
    assert client.predict(png(51), threshold=0.1).names == ("dog",)


def test_bytes_arrive_as_they_are():
    with _served(_Refusing(grpc.StatusCode.OK, 0)) as echo:
        images = [b"ends in zeros\0\0", b"", b"\xff\xfe"]
        assert echo.detect(images)["image_bytes"].tolist() == images
        assert echo.run_signature("detect", image_bytes=images)["image_bytes"].tolist() == images


def test_classify_answers_with_a_row_for_each_image(client):
    short, long = png(size=(2, 2)), png() + b"padding"
    rows = client.classify_rpc([short, long])
    answer = client.classify([short, long])
    assert [
        list(zip(*row, strict=True)) for row in zip(answer["classes"].astype(str), answer["scores"], strict=True)
    ] == rows
    assert [[label for label, _ in row] for row in rows] == [["short", "long"]] * 2
    assert [dict(row)["long"] for row in rows] == [len(short), len(long)]


def test_any_signature_is_called_by_its_name(client, server):
    images = np.full((2, 4, 6, 3), 51, np.uint8)
    np.testing.assert_array_equal(client.run_signature("detect_images", images=images)["detection_classes"], [[2]] * 2)
    with Client(server.address, "m", version=1) as first:
        np.testing.assert_array_equal(
            first.run_signature("detect_images", images=images)["detection_classes"], [[1]] * 2
        )


def test_a_version_is_asked_for_by_its_label(server):
    images = np.full((1, 4, 6, 3), 51, np.uint8)
    for label, version in (("stable", 1), ("canary", 2)):
        with Client(server.address, "m", label=label) as client:
            assert client.run_signature("detect_images", images=images)["detection_classes"] == [[version]]
            client.metadata()


def test_metadata_and_status(client):
    assert client.metadata()["classify"].inputs["inputs"].dtype == tf.string.as_datatype_enum
    assert list(client.status().items()) == [(2, "AVAILABLE"), (1, "AVAILABLE")]


def test_nothing_is_sent_for_an_empty_batch():
    servicer = _Refusing(grpc.StatusCode.OK, 0)
    with _served(servicer) as client:
        for call in (
            lambda: client.detect([]),
            lambda: client.classify([]),
            lambda: client.classify_rpc([]),
            lambda: client.run_signature("detect_images", images=np.zeros((0, 4, 4, 3), np.uint8)),
            lambda: client.detect(b"one image, not in a list"),
        ):
            with pytest.raises(ValueError, match=r"expected .* image"):
                call()
        assert client.detect([b"x"])["image_bytes"].tolist() == [b"x"]
    assert servicer.calls == 1


@pytest.mark.parametrize(
    ("code", "calls"),
    [
        (grpc.StatusCode.UNAVAILABLE, 3),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 3),
        (grpc.StatusCode.INVALID_ARGUMENT, 1),
        (grpc.StatusCode.INTERNAL, 1),
    ],
)
def test_only_not_now_is_tried_again(code, calls):
    servicer = _Refusing(code, times=2)
    photograph = bytes(6 << 20)  # larger than gRPC keeps for another attempt, and than it receives, unless told
    with _served(servicer) as client:
        if calls == 1:
            with pytest.raises(ServingError, match=rf": {code.name}: two lines$"):
                client.detect([photograph])
        else:
            assert client.detect([photograph])["image_bytes"][0] == photograph
    assert servicer.calls == calls


def test_an_error_is_one_line_with_address_code_and_details(client, server):
    with pytest.raises(ServingError) as caught:
        client.detect([b"nope"])
    assert str(caught.value).startswith(f"{server.address}: INVALID_ARGUMENT: Unknown image file format.")
    assert "\n" not in str(caught.value)


def test_a_call_has_a_deadline(server):
    with Client(server.address, "m", timeout=0.3) as client, pytest.raises(ServingError) as caught:
        client.run_signature("spin", seconds=np.array([1.0], np.float32))
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_waiting_ends_when_ready_or_says_why_not(client, server):
    client.wait_until_ready(10)
    with Client(server.address, "m", version=9) as absent, pytest.raises(ServingError) as caught:
        absent.wait_until_ready(1)
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    assert "m is not ready after 1 s: Could not find version 9 of model m" in str(caught.value)
    begin = time.monotonic()
    with Client("127.0.0.1:1", "m") as nobody, pytest.raises(ServingError, match="m is not ready after 1 s"):
        nobody.wait_until_ready(1)
    assert 0.5 < time.monotonic() - begin < 5
