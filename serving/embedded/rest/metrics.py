"""Prometheus metrics: TF Serving's counts and latencies by its names, what waits, what is loaded, and the process."""

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
_PREFIX = ":tensorflow:serving:"
_METHODS = ("Predict", "Classify", "Regress", "MultiInference")  # TF Serving counts no others
_REQUEST_BUCKETS = [10 * 1.8**power for power in range(33)]  # microseconds; TF Serving's, to 20 minutes
_QUEUING_BUCKETS = [100 * 1.2**power for power in range(52)]  # likewise, to a second


class Metrics(Collector):
    """Metrics with a registry of their own, which observe a RequestHandler. Safe from any thread."""

    def __init__(self, handler: RequestHandler):
        self._models = handler.models
        self._registry = registry = CollectorRegistry()
        name, text = f"{_PREFIX}request_count", "The total number of requests."
        self._requests = Counter(name, text, ["model_name", "status"], registry=registry)
        name, text = f"{_PREFIX}request_latency", "Wall time of answered requests in microseconds."
        labels = ["model_name", "API", "entrypoint"]
        self._latency = Histogram(name, text, labels, buckets=_REQUEST_BUCKETS, registry=registry)
        name, text = f"{_PREFIX}batching_session:queuing_latency", "Wall time that requests waited in microseconds."
        queuing = Histogram(name, text, ["thread_pool_name"], buckets=_QUEUING_BUCKETS, registry=registry)
        self.gauge("overfeat_requests_queued", "Waiting requests.", lambda: handler.queue.waiting)
        registry.register(self)
        ProcessCollector(registry=registry)
        handler.observer = self.observe
        waited = queuing.labels("serving")
        handler.queue.on_start = lambda seconds: waited.observe(seconds * 1e6)

    def observe(
        self, method: str, model: str, version: int | None, code: grpc.StatusCode, seconds: float, entrypoint: str
    ) -> None:
        """Count a request and, if it was answered, time it, as TF Serving does."""
        if method not in _METHODS:
            return
        self._requests.labels(model, code.name).inc()
        if code is grpc.StatusCode.OK:
            self._latency.labels(model, method if entrypoint == "GRPC" else method.lower(), entrypoint).observe(
                seconds * 1e6
            )

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a number that is read whenever Prometheus asks."""
        Gauge(name, text, registry=self._registry).set_function(value)

    def page(self) -> bytes:
        """Write the page; the library ends the names of counters in `_total`, which TF Serving's names do not."""
        return generate_latest(self._registry).replace(b":request_count_total", b":request_count")

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Collect the states of all versions, broken ones included."""
        text = "1 for each version that the server knows, by its state."
        family = GaugeMetricFamily("overfeat_model_version", text, labels=["model", "version", "state"])
        for name in self._models.known:
            with suppress(StatusError):  # withdrawn in the meantime
                for each in self._models.states(ModelSpec(name=name)):
                    family.add_metric([name, str(each.version), ModelVersionStatus.State.Name(each.state)], 1)
        yield family
