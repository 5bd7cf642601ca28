"""The embedded server's life: its queue, deadlines, faults, port and end."""

import threading
import time
from collections.abc import Callable
from concurrent import futures

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from small_model import png
from stock_requests import (
    call,
    classify_request,
    good_request,
    multi_request,
    predict_request,
    status_request,
)
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc

from serving.servables import Models, Servable
from serving.server import Server, start


def _served(function: Callable, **options) -> Server:
    """Serves a model whose only signature is a Python function: `x` -> `y`, both float [?]."""
    vector = meta_graph_pb2.TensorInfo(dtype=tf.float32.as_datatype_enum)
    vector.tensor_shape.dim.add(size=-1)
    definition = meta_graph_pb2.SignatureDef(inputs={"x": vector}, outputs={"y": vector})
    servable = Servable("m", 1, {"serving_default": definition}, {"serving_default": function})
    return Server(Models([servable]), port=0, **options)


def _predict(channel: grpc.Channel) -> Callable:
    return prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict


class _Gate:
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


X = predict_request(x=np.ones(1, np.float32))


def test_a_full_queue_refuses_and_then_recovers():
    gate = _Gate()
    with _served(gate, workers=1, max_concurrent_rpcs=2) as server, grpc.insecure_channel(server.address) as channel:
        running = _predict(channel).future(X, timeout=20)
        assert gate.entered.acquire(timeout=10)
        waiting = _predict(channel).future(X, timeout=20)
        error = _until_refused(channel)
        gate.open.set()
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert error.details() == "The queue of this server is full: 1 requests wait already"
        assert running.result().outputs["y"].float_val == waiting.result().outputs["y"].float_val == [1.0]
        assert _predict(channel)(X, timeout=10).outputs


def _until_refused(channel: grpc.Channel) -> grpc.RpcError:
    """Calls until the waiting request has taken the queue's last place, which nothing announces."""
    for _ in range(50):
        try:
            _predict(channel)(X, timeout=0.2)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                return error
    raise AssertionError("the queue was never full")


def test_a_request_past_its_deadline_is_not_run():
    gate = _Gate()
    with _served(gate, workers=1) as server, grpc.insecure_channel(server.address) as channel:
        running = _predict(channel).future(X, timeout=20)
        assert gate.entered.acquire(timeout=10)
        with pytest.raises(grpc.RpcError) as late:
            _predict(channel)(X, timeout=0.3)
        gate.open.set()
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert running.result().outputs
        assert _predict(channel)(X, timeout=10).outputs
    assert gate.calls == 2


def test_a_cancelled_request_is_not_run():
    gate = _Gate()
    with _served(gate, workers=1) as server, grpc.insecure_channel(server.address) as channel:
        running = _predict(channel).future(X, timeout=20)
        assert gate.entered.acquire(timeout=10)
        waiting = _predict(channel).future(X, timeout=20)
        _until(lambda: server.door.queued == 1)
        waiting.cancel()
        time.sleep(0.2)  # for the word to arrive, which nothing tells
        gate.open.set()
        assert running.result().outputs
        assert _predict(channel)(X, timeout=10).outputs
    assert gate.calls == 2


def test_a_request_that_finds_the_queue_full_need_not_be_received():
    gate = _Gate()
    seen = _Seen()
    large = predict_request(x=np.ones(4 << 20, np.float32))
    server = _served(gate, workers=1, max_concurrent_rpcs=1, observer=seen)
    with server, grpc.insecure_channel(server.address) as channel:
        running = _predict(channel).future(X, timeout=20)
        assert gate.entered.acquire(timeout=10)
        with pytest.raises(grpc.RpcError) as refused:
            _predict(channel)(large, timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        # Whoever asks about the server gets past those who wait for it.
        assert call(channel, "GetModelStatus", status_request()).model_version_status
        gate.open.set()
        assert running.result().outputs
    told = [each[:4] for each in seen.told]
    ok, unavailable = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE
    assert told == [("Predict", "", None, unavailable), ("GetModelStatus", "m", None, ok), ("Predict", "m", 1, ok)]


class _Seen:
    """An observer that notes, and then fails, which must harm nobody."""

    def __init__(self):
        self.told = []

    def observe(self, *request):
        self.told.append(request)
        raise RuntimeError("an observer's fault")


def test_an_observer_is_told_of_each_request_once(servable):
    seen = _Seen()
    with Server(Models([servable]), port=0, observer=seen) as server, grpc.insecure_channel(server.address) as channel:
        call(channel, "Predict", good_request())
        call(channel, "Classify", classify_request(png()))
        call(channel, "MultiInference", multi_request("classify"))
        for refused in (predict_request("nope", image_bytes=[png()]), predict_request(model="made up")):
            with pytest.raises(grpc.RpcError):
                call(channel, "Predict", refused)
    ok = grpc.StatusCode.OK
    assert [each[:4] for each in seen.told] == [
        ("Predict", "m", 1, ok),
        ("Classify", "m", 1, ok),
        ("MultiInference", "m", 1, ok),
        ("Predict", "m", None, grpc.StatusCode.FAILED_PRECONDITION),
        ("Predict", "", None, grpc.StatusCode.NOT_FOUND),  # a name from outside is no label for a metric
    ]
    assert all(0 <= each[4] < 20 for each in seen.told)


def test_health_is_told_for_the_server_and_each_service(channel):
    check = health_pb2_grpc.HealthStub(channel).Check
    for service in ("", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"):
        asked = health_pb2.HealthCheckRequest(service=service)
        assert check(asked, timeout=10).status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as unknown:
        check(health_pb2.HealthCheckRequest(service="nope"), timeout=10)
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_lists_and_describes_the_services(channel):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="tensorflow.serving.PredictionService"),
    ]
    listed, described = stub.ServerReflectionInfo(iter(requests), timeout=10)
    names = {each.name for each in listed.list_services_response.service}
    assert names >= {"tensorflow.serving.PredictionService", "tensorflow.serving.ModelService", "grpc.health.v1.Health"}
    assert described.file_descriptor_response.file_descriptor_proto


def test_stopping_is_told_first_and_drains_what_runs_and_waits():
    gate = _Gate()
    with grpc.insecure_channel((server := _served(gate, workers=1)).address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        running, waiting = (_predict(channel).future(X, timeout=20) for _ in range(2))
        assert gate.entered.acquire(timeout=10)
        _until(lambda: server.door.queued == 1)
        stopping = threading.Thread(target=server.stop, args=(10,), kwargs={"notice": 0.2})
        stopping.start()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        _until(lambda: _is_refused(server.address))
        assert not running.done()
        gate.open.set()
        assert [each.result(20).outputs["y"].float_val[0] for each in (running, waiting)] == [1.0, 1.0]
        begun = time.monotonic()
        stopping.join(10)
        assert time.monotonic() - begun < 5  # the watch, which is still open, does not hold it
    assert gate.calls == 2


def _is_refused(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        try:
            call(channel, "GetModelStatus", status_request(), timeout=5)
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.UNAVAILABLE
    return False


def _until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def test_an_unexpected_fault_is_internal_and_leaves_the_server_answering():
    faults = iter([RuntimeError("line one\nline two"), tf.errors.UnavailableError(None, None, "not now")])

    def fails_twice(x):
        fault = next(faults, None)
        if fault:
            raise fault
        return {"y": x}

    with _served(fails_twice) as server, grpc.insecure_channel(server.address) as channel:
        told = []
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as caught:
                _predict(channel)(X, timeout=10)
            told.append((caught.value.code(), caught.value.details()))
        assert told == [
            (grpc.StatusCode.INTERNAL, "RuntimeError: line one"),
            (grpc.StatusCode.UNAVAILABLE, "not now"),
        ]
        assert _predict(channel)(X, timeout=10).outputs


def test_requests_run_side_by_side():
    barrier = threading.Barrier(3)

    def meets_the_others(x):
        barrier.wait(10)
        return {"y": x}

    with (
        _served(meets_the_others, workers=3) as server,
        grpc.insecure_channel(server.address) as channel,
        futures.ThreadPoolExecutor(3) as clients,
    ):
        answers = list(clients.map(lambda _: _predict(channel)(X, timeout=10), range(3)))
    assert len(answers) == 3


def test_a_taken_port_is_one_line_before_anything_is_loaded(server, tmp_path):
    with pytest.raises(
        OSError, match=rf"^cannot listen on 127\.0\.0\.1:{server.port}: Address already in use; [^\n]*$"
    ):
        start([tmp_path / "absent"], port=server.port)


def test_a_label_for_a_version_that_is_not_loaded_is_refused():
    with pytest.raises(ValueError, match="label stable names version 1 of m, which is not loaded"):
        Models([], {"m": {"stable": 1}})
