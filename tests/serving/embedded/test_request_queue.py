"""The request queue: in order, so many at a time, and requests that nobody waits for stop early."""

import contextlib
import socket
import threading
import time
from concurrent import futures

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from gated_model import contract_models, function_models
from grpc_health.v1 import health_pb2, health_pb2_grpc
from stock_requests import call, classify_request, multi_request, predict_request
from tensorflow_serving.apis import prediction_service_pb2_grpc
from waiting import until

from serving.embedded.handler import RequestHandler
from serving.embedded.request_queue import RequestContext, RequestQueue
from serving.embedded.rest import api
from serving.embedded.rest.server import RestServer
from serving.embedded.servables import ROWS_PER_RUN
from serving.embedded.server import Server
from serving.errors import StatusError

MANY = 400  # rows, of a tenth of a second for each part: a request that is not stopped takes ten seconds
IMAGES = np.arange(MANY, dtype=np.uint8).reshape(-1, 1, 1, 1) * np.ones([1, 2, 2, 3], np.uint8)


class Slow:
    """Answers `classify_images` slowly with each image's brightness, and notes the rows of each run."""

    def __init__(self, seconds: float = 0.1):
        self.runs: list[int] = []
        self._seconds = seconds

    def __call__(self, images):
        self.runs.append(len(images))
        time.sleep(self._seconds)
        brightness = tf.reduce_mean(tf.cast(images, tf.float32), [1, 2])
        return {"logits": brightness, "probs": brightness / 255}


def _request(rows: int):
    return predict_request("classify_images", images=IMAGES[:rows])


@pytest.fixture
def slow():
    return Slow()


@pytest.fixture
def server(slow):
    with Server(contract_models(slow), port=0, workers=1) as server:
        yield server


@pytest.fixture
def ask(server):
    with grpc.insecure_channel(server.address) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict


def test_requests_run_in_order_and_too_many_are_refused():
    queue, leave, gone, order = RequestQueue(1, 3, 100), threading.Event(), threading.Event(), []

    def run(number):
        with queue.slot(RequestContext(is_cancelled=gone.is_set if number == 3 else lambda: False), 30):
            order.append(number)
            assert leave.wait(10)

    waiting = []
    for number in range(4):
        queue.require_space()
        waiting.append(queue.submit(run, number))
        until(lambda number=number: (queue.waiting, len(order)) == (number, 1))
    with pytest.raises(StatusError, match="UNAVAILABLE: The queue of this server is full: 3 requests wait already"):
        queue.require_space()
    with pytest.raises(StatusError, match="too many large requests"), queue.slot(RequestContext(), 20):
        pass
    gone.set()  # a client that leaves frees its place
    with pytest.raises(StatusError, match="CANCELLED"):
        waiting.pop().result(5)
    assert queue.waiting == 2
    queue.require_space()
    leave.set()
    futures.wait(waiting, 10)
    assert order == [0, 1, 2] and queue.wait_idle(1) and queue.waiting == 0
    queue.shutdown()


@pytest.mark.parametrize("method", ["Classify", "MultiInference"])
def test_all_methods_that_run_a_model_wait_for_a_slot(method):
    running, most = [], []

    def classify(inputs):
        running.append(inputs)
        most.append(len(running))
        time.sleep(0.2)
        running.pop()
        return {"classes": tf.fill([len(inputs), 1], "a"), "scores": tf.ones([len(inputs), 1])}

    request = classify_request(b"x") if method == "Classify" else multi_request("classify")
    with (
        Server(contract_models(classify, "classify"), port=0, workers=1) as server,
        grpc.insecure_channel(server.address) as channel,
        futures.ThreadPoolExecutor(3) as clients,
    ):
        list(clients.map(lambda _: call(channel, method, request), range(3)))
    assert most == [1, 1, 1]


def test_clients_that_send_slowly_hold_up_nobody(server, ask):
    def begin(path: str) -> socket.socket:
        """Open an HTTP/2 call that never sends its message."""
        client = socket.create_connection(("127.0.0.1", server.port), 20)
        fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost")]
        fields += [("content-type", "application/grpc"), ("te", "trailers")]
        block = b"".join(b"\0" + bytes([len(k)]) + k.encode() + bytes([len(v)]) + v.encode() for k, v in fields)
        frames = b"\0\0\0\4\0\0\0\0\0" + len(block).to_bytes(3, "big") + b"\1\4\0\0\0\1" + block
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frames)
        return client

    with contextlib.ExitStack() as stack:
        for path in [
            "/tensorflow.serving.PredictionService/Predict",
            "/tensorflow.serving.ModelService/GetModelStatus",
        ]:
            for _ in range(8):
                stack.enter_context(begin(path))
        until(lambda: server.handler.queue._calls == 8)
        assert ask(_request(1), timeout=10).outputs
        with grpc.insecure_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert health.status == health_pb2.HealthCheckResponse.SERVING


def test_a_context_says_why_nobody_waits():
    RequestContext().check()
    RequestContext(float("inf"), lambda: False).check()
    with pytest.raises(StatusError, match="CANCELLED: the client cancelled the request"):
        RequestContext(time.monotonic() + 10, lambda: True).check()
    with pytest.raises(StatusError, match="DEADLINE_EXCEEDED: Deadline Exceeded"):
        RequestContext(time.monotonic() - 1, lambda: True).check()  # gRPC calls a late client gone too


def test_a_request_past_its_deadline_stops(server, slow, ask):
    with pytest.raises(grpc.RpcError) as late:
        ask(_request(MANY), timeout=2)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert server.handler.queue.wait_idle(5)
    assert ask(_request(1), timeout=10).outputs
    assert set(slow.runs) == {ROWS_PER_RUN, 1} and len(slow.runs) < 60


def test_a_request_whose_client_is_gone_stops(server, slow, ask):
    running = ask.future(_request(MANY), timeout=60)
    until(lambda: slow.runs)
    running.cancel()
    assert ask(_request(1), timeout=5).outputs  # the one thread is free again
    assert len(slow.runs) < 40


def test_over_rest_a_request_past_its_deadline_and_one_whose_client_is_gone_stop(slow, monkeypatch):
    handler = RequestHandler(contract_models(slow), 1 << 20, workers=1)
    body = {"signature_name": "classify_images", "inputs": IMAGES.tolist()}
    with monkeypatch.context() as patch, RestServer(handler, port=0) as rest:
        patch.setattr(api, "_TIMEOUT_SECONDS", 2)
        answer = httpx.post(f"{rest.url}/v1/models/m:predict", json=body, timeout=20)
        assert (answer.status_code, answer.json()) == (504, {"error": "Deadline Exceeded"})
    with RestServer(handler, port=0) as rest:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{rest.url}/v1/models/m:predict", json=body, timeout=2)
        assert handler.queue.wait_idle(5)


def test_parts_together_are_the_answer_of_the_whole():
    slow = Slow(0)
    handler = RequestHandler(contract_models(slow), 1 << 20)
    outputs = handler.predict(_request(10)).outputs
    assert slow.runs == [4, 4, 2]
    assert list(outputs["logits"].float_val) == [float(n) for n in range(10) for _ in range(3)]
    assert [each.size for each in outputs["probs"].tensor_shape.dim] == [10, 3]
    handler.predict(_request(0)), handler.predict(_request(4))
    assert slow.runs == [4, 4, 2, 0, 4]


def test_signatures_of_which_nothing_is_known_run_whole():
    runs = []
    handler = RequestHandler(function_models(lambda x: (runs.append(len(x)), {"y": x - tf.reduce_mean(x)})[1]), 1 << 20)
    answer = handler.predict(predict_request(x=np.arange(9, dtype=np.float32))).outputs["y"]
    assert list(answer.float_val) == [n - 4.0 for n in range(9)] and runs == [9]


def test_a_signature_that_only_looks_like_the_contracts_runs_whole_in_the_end():
    def shapes_by_batch(images):
        rows = tf.shape(images)[0]
        return {"logits": tf.zeros([rows, rows]), "probs": tf.zeros([rows, 2])}

    outputs = RequestHandler(contract_models(shapes_by_batch), 1 << 20).predict(_request(6)).outputs
    assert [each.size for each in outputs["logits"].tensor_shape.dim] == [6, 6]


def test_an_error_in_a_late_part_fails_the_request():
    def rejects(images):
        if tf.reduce_max(images) > 5:
            raise tf.errors.InvalidArgumentError(None, None, "too bright")
        return Slow(0)(images)

    handler = RequestHandler(contract_models(rejects), 1 << 20)
    with pytest.raises(StatusError, match="INVALID_ARGUMENT: too bright"):
        handler.predict(_request(9))


def test_what_has_begun_is_answered_late_but_answered():
    handler = RequestHandler(function_models(lambda x: (time.sleep(0.3), {"y": x})[1]), 1 << 20)
    context = RequestContext(time.monotonic() + 0.1)
    assert handler.predict(predict_request(x=np.ones(1, np.float32)), context).outputs
