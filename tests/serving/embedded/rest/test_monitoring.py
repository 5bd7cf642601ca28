"""What Prometheus reads: parsed by its own library."""

import grpc
import httpx
import pytest
from gated_model import Gate
from prometheus_client.parser import text_string_to_metric_families
from small_model import png
from stock_requests import call, predict_request
from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus

from serving.embedded.handler import RequestHandler
from serving.embedded.rest.metrics import METRICS_PATH, Metrics
from serving.embedded.rest.server import RestServer
from serving.embedded.servables import Models


def samples(text: str) -> dict[tuple[str, frozenset], float]:
    """Gives every sample's value by its name and labels."""
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def key(name: str, **labels: str) -> tuple[str, frozenset]:
    return name, frozenset(labels.items())


@pytest.fixture
def watched(server):
    """Serves the small model over HTTP with metrics, for one test."""
    metrics = Metrics(server.handler)
    server.handler.observer = metrics.observe
    with (
        RestServer(server.handler, port=0, metrics=metrics) as rest,
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
    counts = {k: v for k, v in found.items() if k[0] == "overfeat_requests_total"}
    assert counts == {
        key("overfeat_requests_total", method="Predict", model="m", version="2", code="OK"): 1,
        key("overfeat_requests_total", method="Predict", model="", version="", code="NOT_FOUND"): 2,
    }
    assert found[key("overfeat_request_seconds_count", method="Predict", model="m")] == 1
    assert 0 < found[key("overfeat_request_seconds_sum", method="Predict", model="m")] < 10
    assert found[key("overfeat_http_responses_total", status="400")] == 1
    assert found[key("overfeat_rest_requests")] == 0
    assert found[key("overfeat_http_responses_total", status="404")] == 1


def test_what_is_loaded_waits_and_lives_is_read_when_asked(servable):
    handler = RequestHandler(Models([servable]), 1, workers=1)
    metrics = Metrics(handler)
    handler.models.set_state("m", 3, ModelVersionStatus.END, "broken")
    gate = Gate()
    requests = [handler.queue.submit(gate, 0) for _ in range(8)]
    found = samples(metrics.page().decode())
    states = {tuple(sorted(dict(k[1]).values())) for k in found if k[0] == "overfeat_model_version"}
    assert states == {("1", "AVAILABLE", "m"), ("3", "END", "m")}
    assert found[key("overfeat_requests_queued")] == 7
    gate.open.set()
    assert all(each.result(10) for each in requests)
    assert found[key("process_resident_memory_bytes")] > 1e6
