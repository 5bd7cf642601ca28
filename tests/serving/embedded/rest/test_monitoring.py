"""What Prometheus reads: parsed by its own library."""

import re
import socket
from pathlib import Path

import grpc
import httpx
import pytest
from gated_model import Gate
from prometheus_client.parser import text_string_to_metric_families
from small_model import png
from stock_requests import call, predict_request
from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus
from waiting import until

from serving.embedded.handler import RequestHandler
from serving.embedded.request_queue import RequestContext
from serving.embedded.rest.metrics import METRICS_PATH, Metrics
from serving.embedded.rest.server import RestServer
from serving.embedded.servables import Models

RUNBOOK = Path(__file__).parents[4] / "serving" / "deploy" / "RUNBOOK.md"


def samples(text: str) -> dict[tuple[str, frozenset], float]:
    """Gives every sample's value by its name and labels."""
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def key(name: str, **labels: str) -> tuple[str, frozenset]:
    return name, frozenset(labels.items())


@pytest.fixture
def watched(server):
    """Serves the small model over HTTP with metrics, for one test."""
    with (
        RestServer(server.handler, port=0) as rest,
        httpx.Client(base_url=f"http://127.0.0.1:{rest.port}") as client,
    ):
        yield client
    server.handler.observer = None


def test_requests_over_grpc_and_rest_are_counted_together(watched, channel):
    call(channel, "Predict", predict_request(image_bytes=[png()]))
    assert watched.post("/v1/models/m/versions/1:predict", json={"inputs": [1]}).status_code == 400
    with pytest.raises(grpc.RpcError):
        call(channel, "Predict", predict_request(model="x" * 50, image_bytes=[png()]))
    watched.post("/v1/models/nobody:predict", json={"inputs": [1]})
    page = watched.get(METRICS_PATH)
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(page.text)
    # The names and labels of TF Serving, by which the runbook asks; a name from outside is no label. The parser adds
    # `_total` to the names of counters.
    name = ":tensorflow:serving:request_count"
    assert {k: v for k, v in found.items() if k[0] == f"{name}_total"} == {
        key(f"{name}_total", model_name="m", status="OK"): 1,
        key(f"{name}_total", model_name="m", status="INVALID_ARGUMENT"): 1,
        key(f"{name}_total", model_name="", status="NOT_FOUND"): 2,
    }
    assert f'\n{name}{{model_name="m",status="OK"}} 1.0\n' in page.text
    assert f"# TYPE {name} counter" in page.text
    answered = {"model_name": "m", "API": "Predict", "entrypoint": "GRPC"}
    assert found[key(":tensorflow:serving:request_latency_count", **answered)] == 1
    assert 1e2 < found[key(":tensorflow:serving:request_latency_sum", **answered)] < 1e7  # microseconds
    assert key(":tensorflow:serving:request_latency_bucket", le="18.0", **answered) in found
    rest = answered | {"API": "predict", "entrypoint": "REST"}
    assert watched.post("/v1/models/m:predict", json={"signature_name": "spin", "inputs": [0]}).status_code == 200
    found = samples(watched.get(METRICS_PATH).text)
    assert found[key(":tensorflow:serving:request_latency_count", **rest)] == 1
    queued = key(":tensorflow:serving:batching_session:queuing_latency_count", thread_pool_name="serving")
    assert found[queued] >= 2
    assert found[key("overfeat_rest_requests")] == 0


def test_what_rest_rejects_before_a_handler_sees_it_is_counted(server, max_bytes):
    seen = []
    with RestServer(server.handler, port=0) as rest, httpx.Client(base_url=rest.url) as http:
        for body in (b"{", b" " * (max_bytes + 1), b'{"signature_name": "\\ud800", "inputs": [1]}'):
            assert http.post("/v1/models/m:predict", content=body).status_code in (400, 413)
        found = samples(http.get(METRICS_PATH).text)
        count = server.handler.observer
        server.handler.observer = lambda *about: (seen.append(about), count(*about))
        assert http.post("/v1/models/m:predict", content=b"{").status_code == 400
        with socket.create_connection(("127.0.0.1", rest.port), 20) as client:
            client.sendall(b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            until(lambda: rest.api.held == 1)
        until(lambda: len(seen) == 2)  # a client that leaves while it sends
    server.handler.observer = None
    assert seen.pop()[3] is grpc.StatusCode.CANCELLED
    counted = key(":tensorflow:serving:request_count_total", model_name="m", status="INVALID_ARGUMENT")
    assert found[counted] == 3 and len(seen) == 1 and {about[5] for about in seen} == {"REST"}


def test_the_runbooks_queries_name_what_the_page_has(watched, channel):
    call(channel, "Predict", predict_request(image_bytes=[png()]))
    page = watched.get(METRICS_PATH).text
    asked = set(re.findall(r":tensorflow:serving:[\w:]+", RUNBOOK.read_text()))
    assert len(asked) >= 3
    assert all(re.search(rf"^{name}\{{", page, re.MULTILINE) for name in asked), asked


def test_what_is_loaded_waits_and_lives_is_read_when_asked(servable):
    handler = RequestHandler(Models([servable]), 1, workers=1)
    metrics = Metrics(handler)
    handler.models.set_state("m", 3, ModelVersionStatus.END, "broken")
    handler.models.set_state("never", 1, ModelVersionStatus.LOADING)
    gate = Gate()

    def run() -> bool:
        with handler.queue.slot(RequestContext()):
            return gate(0) is not None

    requests = [handler.queue.submit(run) for _ in range(8)]
    until(lambda: handler.queue.waiting == 7)
    found = samples(metrics.page().decode())
    states = {tuple(sorted(dict(k[1]).values())) for k in found if k[0] == "overfeat_model_version"}
    assert states == {("1", "AVAILABLE", "m"), ("3", "END", "m"), ("1", "LOADING", "never")}
    assert found[key("overfeat_requests_queued")] == 7
    gate.open.set()
    assert all(each.result(10) for each in requests)
    assert found[key("process_resident_memory_bytes")] > 1e6
