"""Prometheus metrics: requests and their outcomes, what waits, what is loaded, and the process itself."""

from collections.abc import Callable, Iterator
from contextlib import suppress

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector
from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus
from tensorflow_serving.apis.model_pb2 import ModelSpec

from serving.embedded.handler import RequestHandler
from serving.errors import StatusError

METRICS_PATH = "/monitoring/prometheus/metrics"  # as in TF Serving's monitoring configuration
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Seconds: from a status request to a large image on one core.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics(Collector):
    """Metrics with a registry of their own; `observe` is a RequestHandler's observer. Safe from any thread."""

    def __init__(self, handler: RequestHandler):
        self._models = handler.models
        self._registry = registry = CollectorRegistry()
        text = "Requests answered or refused, over gRPC and REST together."
        self._requests = Counter("overfeat_requests", text, ["method", "model", "version", "code"], registry=registry)
        text = "Seconds from a request's coming in to its answer."
        self._seconds = Histogram(
            "overfeat_request_seconds", text, ["method", "model"], buckets=_BUCKETS, registry=registry
        )
        self._http = Counter("overfeat_http_responses", "Responses of the REST port.", ["status"], registry=registry)
        self.gauge("overfeat_requests_queued", "Requests that wait for their turn.", lambda: handler.queue.waiting)
        registry.register(self)
        ProcessCollector(registry=registry)

    def observe(self, method: str, model: str, version: int | None, code: grpc.StatusCode, seconds: float) -> None:
        self._requests.labels(method, model, "" if version is None else str(version), code.name).inc()
        self._seconds.labels(method, model).observe(seconds)

    def responded(self, status: int) -> None:
        self._http.labels(str(status)).inc()

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a number that is read whenever Prometheus asks."""
        Gauge(name, text, registry=self._registry).set_function(value)

    def page(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Collect the states of all versions, broken ones included."""
        text = "1 for each version that the server knows, by its state."
        family = GaugeMetricFamily("overfeat_model_version", text, labels=["model", "version", "state"])
        for name in sorted(self._models.names):
            with suppress(StatusError):  # withdrawn in the meantime
                for each in self._models.states(ModelSpec(name=name)):
                    family.add_metric([name, str(each.version), ModelVersionStatus.State.Name(each.state)], 1)
        yield family
