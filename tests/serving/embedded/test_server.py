"""The embedded server's queue, deadlines, faults and port."""

import contextlib
import socket
import struct
import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
import tensorflow as tf
from gated_model import Gate, Seen, X, predict, serve_function
from stock_requests import call, predict_request, status_request
from waiting import until

from serving.embedded.server import start


def test_a_full_queue_refuses_and_then_recovers():
    gate = Gate()
    with (
        serve_function(gate, workers=1, max_requests=2) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        running = predict(channel).future(X, timeout=20)
        assert gate.entered.acquire(timeout=10)
        waiting = predict(channel).future(X, timeout=20)
        error = _until_refused(channel)
        gate.open.set()
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert error.details() == "The queue of this server is full: 1 requests wait already"
        assert running.result().outputs["y"].float_val == waiting.result().outputs["y"].float_val == [1.0]
        assert predict(channel)(X, timeout=10).outputs


def _until_refused(channel: grpc.Channel) -> grpc.RpcError:
    """Calls until the waiting request has taken the queue's last place, which nothing announces."""
    for _ in range(50):
        try:
            predict(channel)(X, timeout=0.2)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                return error
    raise AssertionError("the queue was never full")


def test_a_request_without_a_deadline_waits():
    gate = Gate()
    with serve_function(gate, workers=1) as server, grpc.insecure_channel(server.address) as channel:
        waiting = [predict(channel).future(X) for _ in range(2)]
        assert gate.entered.acquire(timeout=10)
        gate.open.set()
        assert all(each.result(20).outputs for each in waiting)


def test_a_request_past_its_deadline_is_not_run():
    gate = Gate()
    with serve_function(gate, workers=1) as server, grpc.insecure_channel(server.address) as channel:
        running = predict(channel).future(X, timeout=20)
        assert gate.entered.acquire(timeout=10)
        with pytest.raises(grpc.RpcError) as late:
            predict(channel)(X, timeout=0.3)
        gate.open.set()
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert running.result().outputs
        assert predict(channel)(X, timeout=10).outputs
    assert gate.calls == 2


def test_a_cancelled_request_is_not_run():
    gate = Gate()
    with serve_function(gate, workers=1) as server, grpc.insecure_channel(server.address) as channel:
        running = predict(channel).future(X, timeout=20)
        assert gate.entered.acquire(timeout=10)
        waiting = predict(channel).future(X, timeout=20)
        until(lambda: server.handler.queue.waiting == 1)
        waiting.cancel()
        time.sleep(0.2)  # for the word to arrive, which nothing tells
        gate.open.set()
        assert running.result().outputs
        assert predict(channel)(X, timeout=10).outputs
    assert gate.calls == 2


def test_a_request_that_finds_the_queue_full_need_not_be_received():
    gate = Gate()
    seen = Seen()
    large = predict_request(x=np.ones(4 << 20, np.float32))
    server = serve_function(gate, workers=1, max_requests=1)
    server.handler.observer = seen
    with server, grpc.insecure_channel(server.address) as channel:
        running = predict(channel).future(X, timeout=20)
        assert gate.entered.acquire(timeout=10)
        with pytest.raises(grpc.RpcError) as refused:
            predict(channel)(large, timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        # Whoever asks about the server gets past those who wait for it.
        assert call(channel, "GetModelStatus", status_request()).model_version_status
        gate.open.set()
        assert running.result().outputs
    told = [each[:4] for each in seen.told]
    ok, unavailable = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE
    assert told == [("Predict", "", None, unavailable), ("GetModelStatus", "m", None, ok), ("Predict", "m", 1, ok)]


def test_a_large_message_is_taken():
    request = predict_request(x=np.ones(10 << 20, np.float32))  # 40 MB
    with (
        serve_function(lambda x: {"y": x[:1]}, max_rows=10 << 20) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        assert predict(channel)(request, timeout=20).outputs["y"].float_val == [1.0]


def test_an_unexpected_fault_is_internal_and_leaves_the_server_answering():
    faults = iter([RuntimeError("line one\nline two"), tf.errors.UnavailableError(None, None, "not now")])

    def fails_twice(x):
        fault = next(faults, None)
        if fault:
            raise fault
        return {"y": x}

    with serve_function(fails_twice) as server, grpc.insecure_channel(server.address) as channel:
        told = []
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as caught:
                predict(channel)(X, timeout=10)
            told.append((caught.value.code(), caught.value.details()))
        assert told == [
            (grpc.StatusCode.INTERNAL, "RuntimeError: line one"),
            (grpc.StatusCode.UNAVAILABLE, "not now"),
        ]
        assert predict(channel)(X, timeout=10).outputs


def test_requests_run_side_by_side():
    barrier = threading.Barrier(3)

    def meets_the_others(x):
        barrier.wait(10)
        return {"y": x}

    with (
        serve_function(meets_the_others, workers=3) as server,
        grpc.insecure_channel(server.address) as channel,
        futures.ThreadPoolExecutor(3) as clients,
    ):
        answers = list(clients.map(lambda _: predict(channel)(X, timeout=10), range(3)))
    assert len(answers) == 3


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Packs a frame of HTTP/2 (RFC 9113, 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _flood(port: int, calls: int) -> None:
    """Opens calls on one connection and resets each at once (CVE-2023-44487)."""

    def text(*parts: bytes) -> bytes:
        return b"".join(bytes([len(part)]) + part for part in parts)

    path = b"\x83\x86\x04" + text(b"/tensorflow.serving.PredictionService/Predict") + b"\x01" + text(b"localhost")
    headers = path + b"\0" + text(b"te", b"trailers") + b"\0" + text(b"content-type", b"application/grpc")
    pairs = ((_frame(1, 4, 2 * n + 1, headers), _frame(3, 0, 2 * n + 1, struct.pack(">I", 8))) for n in range(calls))
    with socket.create_connection(("127.0.0.1", port), 20) as client, contextlib.suppress(OSError):
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0) + b"".join(map(b"".join, pairs)))
        client.settimeout(0.5)
        client.recv(1 << 16)


def test_a_client_that_opens_and_resets_calls_by_the_thousand_harms_no_other():
    with serve_function(lambda x: {"y": x}) as server, grpc.insecure_channel(server.address) as channel:
        for _ in range(3):
            _flood(server.port, 20_000)
            assert all(predict(channel)(X, timeout=10).outputs for _ in range(5))


def test_a_taken_port_is_one_line_before_anything_is_loaded(server, tmp_path):
    with pytest.raises(
        OSError, match=rf"^cannot listen on 127\.0\.0\.1:{server.port}: Address already in use; [^\n]*$"
    ):
        start([tmp_path / "absent"], port=server.port)
