"""How a server is watched and stopped: its observer, health, reflection, and the requests it still has."""

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest
from gated_model import Gate, Seen, X, predict, serve_function
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from small_model import png
from stock_requests import call, classify_request, good_request, multi_request, predict_request, status_request
from waiting import until

from serving.embedded import server as module
from serving.embedded import services
from serving.embedded.servables import Models
from serving.embedded.server import Server

# A server whose model computes for a minute, in Python, which nothing can cut off.
STUCK = """
import logging, sys, time
logging.basicConfig(format="%(message)s", level=logging.INFO)
sys.path.insert(0, sys.argv[1])
from gated_model import serve_function
from serving.embedded import server
server.start_models = lambda *_, **__: serve_function(lambda x: time.sleep(60))
server.run([], grace=0.2)
"""


def test_an_observer_is_told_of_each_request_once(servable):
    seen = Seen()
    with Server(Models([servable]), port=0) as server, grpc.insecure_channel(server.address) as channel:
        server.handler.observer = seen
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


def test_health_is_answered_beside_calls_that_send_no_message(server):
    silent = threading.Event()
    with grpc.insecure_channel(server.address) as channel:
        check = channel.stream_unary("/grpc.health.v1.Health/Check")
        calls = [check.future(iter(silent.wait, True)) for _ in range(6)]
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING and not any(call.done() for call in calls)
        for call in calls:
            call.cancel()
        silent.set()


def test_too_many_watches_of_the_health_are_rejected_and_stop_no_other_call(servable, monkeypatch):
    monkeypatch.setattr(module, "MAX_CALLS", 4)
    with Server(Models([servable]), port=0) as server, grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest(), timeout=20) for _ in range(4)]
        assert all(next(watch).status == health_pb2.HealthCheckResponse.SERVING for watch in watches)
        with pytest.raises(grpc.RpcError) as refused:
            next(health.Watch(health_pb2.HealthCheckRequest(), timeout=10))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert refused.value.details() == "expected at most 4 watch calls at a time; try again later"
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status
        assert call(channel, "GetModelStatus", status_request()).model_version_status
        for watch in watches:
            watch.cancel()


@pytest.mark.parametrize("method", ["PredictionService/Predict", "ModelService/GetModelStatus"])
def test_a_call_whose_message_does_not_arrive_in_time_is_cancelled(servable, monkeypatch, method):
    for name in ("_MESSAGE_SECONDS", "_SMALL_MESSAGE_SECONDS"):
        monkeypatch.setattr(services, name, 0.3)
    silent = threading.Event()
    with (
        Server(Models([servable]), port=0, max_requests=4) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        begin = channel.stream_unary(f"/tensorflow.serving.{method}")
        calls = [begin.future(iter(silent.wait, True), timeout=20) for _ in range(4)]  # as many as there are threads
        assert [each.exception(10).code() for each in calls] == [grpc.StatusCode.CANCELLED] * 4
        silent.set()
        assert server.handler.queue.wait_idle(5)
        assert call(channel, "GetModelStatus", status_request(), timeout=5).model_version_status
        assert call(channel, "Predict", good_request(), timeout=5).outputs


def test_a_call_that_ends_without_a_message_is_rejected(server):
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.stream_unary("/tensorflow.serving.PredictionService/Predict")(iter(()), timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.long  # gRPC waits a minute for the answer to a ping
def test_a_client_that_has_vanished_with_a_call_is_noticed(monkeypatch):
    monkeypatch.setattr(module, "_KEEPALIVE_MS", 1000)
    names = {":method": "POST", ":scheme": "http", ":path": "/grpc.health.v1.Health/Watch", ":authority": "m"}
    names |= {"content-type": "application/grpc", "te": "trailers"}
    pairs = [(name.encode(), value.encode()) for name, value in names.items()]
    headers = b"".join(b"\0%c%b%c%b" % (len(name), name, len(value), value) for name, value in pairs)

    def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
        return len(content).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + content

    with Server(Models(), port=0) as server, socket.create_connection((server.host, server.port)) as client:
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(4, 1, 0, b""))
        client.sendall(frame(1, 4, 1, headers) + frame(0, 1, 1, bytes(5)))  # an empty message
        client.settimeout(90)
        kinds = []
        with client.makefile("rb") as stream:
            while head := stream.read(9):
                content = stream.read(int.from_bytes(head[:3]))
                kinds.append(head[3])
                if kinds[-1] == 6 and kinds.count(6) == 1:  # by this ping gRPC measures the connection
                    client.sendall(frame(6, 1, 0, content))
    assert kinds.count(0) == 1 and kinds.count(6) == 2  # the watch was answered, and a ping was not


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
    gate = Gate()
    with grpc.insecure_channel((server := serve_function(gate, workers=1)).address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        running, waiting = (predict(channel).future(X, timeout=20) for _ in range(2))
        assert gate.entered.acquire(timeout=10)
        until(lambda: server.handler.queue.waiting == 1)
        stopping = threading.Thread(target=server.stop, args=(10,), kwargs={"notice": 0.2})
        stopping.start()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        until(lambda: _is_refused(server.address))
        assert not running.done()
        gate.open.set()
        assert [each.result(20).outputs["y"].float_val[0] for each in (running, waiting)] == [1.0, 1.0]
        begun = time.monotonic()
        stopping.join(10)
        assert time.monotonic() - begun < 5  # the watch, which is still open, does not hold it
    assert gate.calls == 2


def test_a_process_ends_after_the_grace_though_a_model_computes_and_though_it_was_stopped_when_asked():
    here = Path(__file__).parents[1]
    command = [sys.executable, "-c", STUCK, str(here)]
    with subprocess.Popen(command, cwd=here.parents[1], stderr=subprocess.PIPE, text=True) as process:
        try:
            address = next(line.split()[-1] for line in process.stderr if "serving " in line)
            with grpc.insecure_channel(address) as channel:
                running = predict(channel).future(X, timeout=60)
                time.sleep(1.0)
                for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGCONT):
                    process.send_signal(number)
                    time.sleep(0.2)
                assert process.wait(20) == 0
                assert running.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
        finally:
            process.kill()


def _is_refused(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        try:
            call(channel, "GetModelStatus", status_request(), timeout=5)
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.UNAVAILABLE
    return False
