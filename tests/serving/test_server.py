"""The embedded server's life: its queue, deadlines, faults, port and end."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from stock_requests import predict_request
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc

from serving.servables import Models, Servable
from serving.server import Server, start

REPOSITORY = Path(__file__).parents[2]


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


def test_sigterm_lets_the_running_request_finish(model_dir):
    program = (
        "from serving.configuration import from_directories as of; from serving.running import run; "
        f"run(of([{str(model_dir)!r}]), port=0)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    try:
        told = next(line for line in process.stderr if line.startswith("serving "))
        address = told.split()[-1]
        assert told == f"serving m version 2 on {address}\n"
        with grpc.insecure_channel(address) as channel:
            request = predict_request("spin", seconds=np.array([1.5], np.float32))
            running = _predict(channel).future(request, timeout=20)
            time.sleep(0.5)
            assert not running.done()
            process.send_signal(signal.SIGTERM)
            assert running.result().outputs["turns"].int64_val[0] > 0
            process.stderr.read()
            assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
