"""The REST port's life: its limits, its queue, deadlines, clients that leave, TLS, a token, and its end."""

import contextlib
import signal
import socket
import ssl
import subprocess
import sys
import time
from concurrent import futures
from pathlib import Path

import httpx
import numpy as np
import pytest
import tensorflow as tf
from gated_model import Gate, contract_models, function_models
from waiting import until

from serving.embedded.access import Access
from serving.embedded.handler import RequestHandler
from serving.embedded.rest import api
from serving.embedded.rest import server as server_module
from serving.embedded.rest.metrics import METRICS_PATH
from serving.embedded.rest.server import RestServer
from serving.embedded.servables import Models

PREDICT = "/v1/models/m:predict"
REPOSITORY = Path(__file__).parents[4]


def _chunks(size: int):
    yield from (b" " * 65536 for _ in range(size // 65536))


def test_a_body_too_large_is_refused_before_it_is_read(server, max_bytes):
    with RestServer(server.handler, port=0) as rest, httpx.Client(base_url=rest.url) as http:
        for content in (b" " * (max_bytes + 1), _chunks(2 * max_bytes)):  # with its length, and chunked
            answer = http.post(PREDICT, content=content)
            assert answer.status_code == 413 and f"larger than the {max_bytes} bytes" in answer.json()["error"]
        assert http.post(PREDICT, content=b"x", headers={"Content-Encoding": "gzip"}).status_code == 415
        assert http.post(PREDICT, json={"signature_name": "spin", "inputs": [0]}).status_code == 200


def test_slow_bodies_and_too_many_large_ones_are_refused(server, monkeypatch):
    monkeypatch.setattr(api, "_BODY_SECONDS", 1.0)
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n".encode()
    handler = RequestHandler(server.models, 60_000)
    with RestServer(handler, port=0) as rest, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", rest.port), 20)) for _ in range(5)]
        for client in clients:  # four times the largest body is held, then no more
            client.sendall(head + b" " * 59_000)
        codes = sorted(int(client.recv(4096).split()[1]) for client in clients)
        assert codes == [408] * 4 + [503] and rest.api.held == 0
        assert httpx.post(rest.url + PREDICT, json={"signature_name": "spin", "inputs": [0]}).status_code == 200


def _served(function, **options) -> RestServer:
    return RestServer(RequestHandler(function_models(function), 1 << 20, **options), port=0)


def _post(rest: RestServer, timeout: float = 20) -> httpx.Response:
    return httpx.post(rest.url + PREDICT, json={"inputs": [1]}, timeout=timeout)


def test_a_full_queue_gives_503_and_the_event_loop_stays_free():
    gate = Gate()
    with _served(gate, workers=1, max_requests=2) as rest, futures.ThreadPoolExecutor(2) as pool:
        running = pool.submit(_post, rest)
        assert gate.entered.acquire(timeout=10)
        waiting = pool.submit(_post, rest)
        until(lambda: rest.api._handler.queue.waiting == 1)
        refused = _post(rest)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1" and "error" in refused.json()
        assert httpx.get(f"{rest.url}/v1/models/m").status_code == 200
        gate.open.set()
        assert running.result().json() == waiting.result().json() == {"outputs": [1.0]}
        assert _post(rest).status_code == 200 and rest.api.held == 0


def test_a_request_whose_client_is_gone_is_not_run():
    gate = Gate()
    with _served(gate, workers=1) as rest, futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(_post, rest)
        assert gate.entered.acquire(timeout=10)
        with pytest.raises(httpx.ReadTimeout):
            _post(rest, timeout=0.3)
        until(lambda: rest.api.held == 1)
        gate.open.set()
        assert running.result().status_code == 200
    assert gate.calls == 1


def _raw(rest: RestServer, *parts: bytes, read: int = 1 << 20) -> bytes:
    """Sends bytes, closes the sending side, and reads all that comes."""
    with socket.create_connection(("127.0.0.1", rest.port), 20) as client:
        for part in parts:
            client.sendall(part)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(read), b""))


def test_a_client_that_closes_its_sending_side_gets_its_answers(monkeypatch):
    monkeypatch.setattr(server_module, "_PROBE_SECONDS", 0.1)

    def slow(x):
        time.sleep(0.5)
        return {"y": x}

    body = b'{"inputs": [1]}'
    post = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    status = b"GET /v1/models/m HTTP/1.%d\r\nHost: x\r\n\r\n"
    with _served(slow) as rest:
        assert _raw(rest, post, body).count(b'{"outputs":[1.0]}') == 1
        assert _raw(rest, post + body + post + body).count(b'{"outputs":[1.0]}') == 2
        answer = _raw(rest, status % 0)
        assert answer.startswith(b"HTTP/1.1 200") and b"AVAILABLE" in answer
        assert _raw(rest, post, body[:5]) == b""  # a body that cannot end any more


def test_a_connection_that_brings_no_request_is_closed(monkeypatch):
    monkeypatch.setattr(server_module, "_KEEP_ALIVE_SECONDS", 0.3)
    with _served(lambda x: {"y": x}) as rest:
        for begun in (b"", b"GET /v1/mod"):
            with socket.create_connection(("127.0.0.1", rest.port), 20) as client:
                client.sendall(begun)
                assert client.recv(1) == b""


def test_a_request_whose_head_drips_in_is_cut_off(monkeypatch):
    monkeypatch.setattr(server_module, "_KEEP_ALIVE_SECONDS", 0.5)
    with _served(lambda x: {"y": x}) as rest, socket.create_connection(("127.0.0.1", rest.port), 20) as client:
        client.sendall(b"GET /v1/models/m HTTP/1.1\r\nHost: x\r\nX: ")
        client.settimeout(0.05)

        def is_closed_after_one_more() -> bool:
            try:
                client.sendall(b"x")
                return client.recv(1) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        assert any(is_closed_after_one_more() for _ in range(60))


@pytest.mark.parametrize("before", ["http://host", "HTTP://user@host:80", "https://[::1]:8501"])
def test_a_path_may_come_in_the_absolute_form(before):
    with _served(lambda x: {"y": x}) as rest:
        answer = _raw(rest, f"GET {before}/v1/models/m?x=1 HTTP/1.1\r\nHost: host\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 200") and b"AVAILABLE" in answer
        assert _raw(rest, f"GET {before} HTTP/1.1\r\nHost: host\r\n\r\n".encode()).startswith(b"HTTP/1.1 404")


def test_a_request_that_waited_too_long_gets_504_at_once(monkeypatch):
    monkeypatch.setattr(api, "_TIMEOUT_SECONDS", 2.0)
    gate = Gate()
    with _served(gate, workers=1) as rest, futures.ThreadPoolExecutor(2) as pool:
        running = pool.submit(_post, rest)
        assert gate.entered.acquire(timeout=10)
        assert _post(rest).status_code == 504  # while the other still runs
        gate.open.set()
        assert running.result().status_code == 200
    assert gate.calls == 1


def test_stopping_lets_a_running_request_finish():
    gate = Gate()
    rest = _served(gate)
    with futures.ThreadPoolExecutor(2) as pool:
        running = pool.submit(_post, rest)
        assert gate.entered.acquire(timeout=10)
        stopping = pool.submit(rest.stop, 10)
        until(lambda: _refuses(rest))
        gate.open.set()
        assert running.result().json() == {"outputs": [1.0]}
        stopping.result(15)


def test_what_takes_longer_than_the_grace_is_cancelled_and_gets_503(caplog):
    def slow(images):
        time.sleep(0.1)
        return {"logits": tf.zeros([len(images), 2]), "probs": tf.zeros([len(images), 2])}

    handler = RequestHandler(contract_models(slow), 1 << 20)
    rest = RestServer(handler, port=0)
    address = ("127.0.0.1", rest.port)
    with futures.ThreadPoolExecutor(1) as pool, socket.create_connection(address, 20) as sending:
        body = {"signature_name": "classify_images", "inputs": np.zeros([900, 1, 1, 3], int).tolist()}
        running = pool.submit(httpx.post, rest.url + PREDICT, json=body, timeout=60)
        sending.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{{".encode())
        until(lambda: rest.api.held == 2)
        rest.stop(0.2)
        assert running.result(10).status_code == 503 and sending.recv(4096).startswith(b"HTTP/1.1 503 ")
    assert handler.queue.wait_idle(5)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_token_over_tls(server, certificate):
    token = "0123456789abcdef"
    access = Access(certificate, certificate.with_name("key.pem"), token=token)
    with RestServer(server.handler, port=0, access=access, page=True) as rest:
        trusted = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=f"https://127.0.0.1:{rest.port}", verify=trusted) as client:
            refused = client.get("/v1/models/m")
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
            assert "Authorization: Bearer TOKEN" in refused.json()["error"]
            assert client.get("/v1/models/m", headers={"Authorization": "Bearer nobody"}).status_code == 401
            assert client.get("/page/models").status_code == 401 and client.get("/").status_code == 200
            allowed = client.get("/v1/models/m", headers={"Authorization": f"Bearer {token}"})
            assert allowed.status_code == 200


def test_a_taken_port_is_an_oserror():
    with _served(lambda x: {"y": x}) as rest, pytest.raises(OSError, match="in use"):
        RestServer(RequestHandler(Models([]), 1), port=rest.port)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_all_addresses_are_those_of_both_protocols():
    with RestServer(RequestHandler(Models([]), 1), host="::", port=0) as rest:
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, rest.port), 20).close()


def test_not_a_number_and_infinity_as_tf_serving_writes_them():
    function = lambda x: {"y": tf.concat([x, [0.2, 1e-40]], 0)}  # noqa: E731
    with _served(function) as rest:
        answer = httpx.post(rest.url + PREDICT, content=b'{"inputs": [NaN, Infinity, -Infinity, 3]}')
    assert answer.text == '{"outputs":[NaN,Infinity,-Infinity,3.0,0.2,1e-40]}'


@pytest.mark.long
def test_the_verb_serves_rest_and_the_page_until_sigterm(model_dir):
    command = [sys.executable, "-m", "overfeat_tf.cli", "serve", model_dir, "--port", "0", "--rest-port", "0", "--ui"]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = next(line.split()[7] for line in process.stderr if " REST and metrics on " in line)
            assert httpx.get(url).headers["content-type"].startswith("text/html")
            next(line for line in process.stderr if " serving m " in line)  # until then requests get 503
            assert httpx.post(url + PREDICT, json={"signature_name": "spin", "inputs": [0]}).status_code == 200
            assert ':request_count{model_name="m",status="OK"} 1.0' in httpx.get(url + METRICS_PATH).text
            with futures.ThreadPoolExecutor(1) as pool:
                body = {"signature_name": "spin", "inputs": [1.5]}
                running = pool.submit(httpx.post, url + PREDICT, json=body, timeout=20)
                until(lambda: "overfeat_rest_requests 1.0" in httpx.get(url + METRICS_PATH).text)
                process.send_signal(signal.SIGTERM)
                assert running.result().json()["outputs"][0] > 0
            process.stderr.read()
            assert process.wait(10) == 0
        finally:
            process.kill()


def _refuses(rest: RestServer) -> bool:
    try:
        httpx.get(f"{rest.url}/v1/models/m", timeout=1)
    except httpx.ConnectError:
        return True
    return False
