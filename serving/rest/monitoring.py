"""Prometheus metrics: what was asked and how it went, what runs and waits, what is loaded, and the process itself."""

from collections.abc import Callable, Iterator
from contextlib import suppress

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector
from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus
from tensorflow_serving.apis.model_pb2 import ModelSpec

from serving.embedded.door import Door
from serving.embedded.servables import Models
from serving.refusal import Refusal

# As TF Serving's monitoring configuration has it.
METRICS_PATH = "/monitoring/prometheus/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Seconds: from a status request to a large image on one core.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counts requests as the door tells of them, and reads the rest when Prometheus asks; safe from any thread.

    Everything is in a registry of its own, so that a program that embeds the server keeps its own metrics apart.

    Attributes:
        registry: what `page` writes; others may add to it.
    """

    def __init__(self, door: Door):
        """Makes the metrics; the caller makes them the door's observer."""
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "overfeat_requests",
            "Requests answered or refused, over gRPC and REST together.",
            ["method", "model", "version", "code"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "overfeat_request_seconds",
            "Seconds from a request's coming in to its answer.",
            ["method", "model"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._http = Counter(
            "overfeat_http_responses", "Responses of the REST port.", ["status"], registry=self.registry
        )
        self.gauge("overfeat_requests_queued", "Requests that wait for their turn.", lambda: door.queued)
        self.registry.register(_Versions(door.models))
        ProcessCollector(registry=self.registry)

    def observe(self, method: str, model: str, version: int | None, code: grpc.StatusCode, seconds: float) -> None:
        """Counts one request; see serving.embedded.observing.Observer."""
        self._requests.labels(method, model, "" if version is None else str(version), code.name).inc()
        self._seconds.labels(method, model).observe(seconds)

    def responded(self, status: int) -> None:
        """Counts one response of the REST port, those that never came as far as the door among them."""
        self._http.labels(str(status)).inc()

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Adds a number that is read whenever Prometheus asks."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def page(self) -> bytes:
        """Writes all in Prometheus's text format."""
        return generate_latest(self.registry)


class _Versions(Collector):
    """Reads the states of all versions, broken ones among them, when Prometheus asks."""

    def __init__(self, models: Models):
        self._models = models

    def collect(self) -> Iterator[GaugeMetricFamily]:
        text = "1 for each version that the server knows, by its state."
        family = GaugeMetricFamily("overfeat_model_version", text, labels=["model", "version", "state"])
        for name in sorted(self._models.names):
            with suppress(Refusal):  # withdrawn in the meantime
                for each in self._models.states(ModelSpec(name=name)):
                    family.add_metric([name, str(each.version), ModelVersionStatus.State.Name(each.state)], 1)
        yield family
