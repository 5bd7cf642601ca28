"""The door: every request to this server goes through here, whatever protocol brought it.

TF Serving's request messages in, its response messages out, and a Refusal for whatever goes wrong: gRPC and REST only
translate. Requests are counted and timed here, once each.
"""

import contextlib
import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

from serving.embedded import answers
from serving.embedded.batching import Batcher
from serving.embedded.limits import DEFAULT_MAX_ROWS, require_rows
from serving.embedded.metadata import describe, require_metadata_fields
from serving.embedded.observing import METHODS, Observer
from serving.embedded.servables import Models, Servable
from serving.embedded.turns import Turns, require_wanted
from serving.embedded.versions import Keeper
from serving.embedded.watch import Watch
from serving.refusal import Refusal, invalid, refusal_of

Cancelled = Callable[[], bool] | None
_log = logging.getLogger(__name__)


def _told(name: str) -> Callable[[Callable], Callable]:
    """Makes Refusals of whatever a method raises, and tells the observer, under the name of the RPC."""

    def wrap(method: Callable) -> Callable:
        @functools.wraps(method)
        def handle(self: "Door", request: Any, *args: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            code, response = grpc.StatusCode.OK, None
            try:
                response = method(self, request, *args, **options)
                return response
            except Refusal as refusal:
                code = refusal.code
                raise
            except Exception as error:
                refused = refusal_of(error)
                code = refused.code
                if code is grpc.StatusCode.INTERNAL:
                    _log.exception("%s failed", name)
                try:
                    raise refused from error
                finally:
                    del refused  # else this frame, and the request with it, stays until the garbage is collected
            finally:
                self._tell(name, request, response, code, time.perf_counter() - begun)

        return handle

    return wrap


class Door:
    """Answers TF Serving's requests about the models that are served; safe to call from any thread.

    Every method raises Refusal and nothing else. Those that compute take a `deadline`, when nobody waits for the
    answer any more, as `time.monotonic()` counts (None: never), and `cancelled`, which says whether the client is
    gone: a request that is still waiting then is not run, and one that runs is cut off.

    Attributes:
        models: what is served; `str(models)` says it in words.
        observer: who is told of every request; may be set at any time.
    """

    def __init__(
        self,
        models: Models,
        max_bytes: int,
        observer: Observer | None = None,
        *,
        keeper: Keeper | None = None,
        turns: Turns | None = None,
        batcher: Batcher | None = None,
        watch: Watch | None = None,
        max_rows: int = DEFAULT_MAX_ROWS,
    ):
        """Takes what the door stands before.

        Args:
            models: what is served.
            max_bytes: the most that one tensor of a request may occupy.
            observer: who is told of every request.
            keeper: who takes another configuration; None where what is served is fixed.
            turns: how many requests run and wait; None for any number.
            batcher: who runs Predict requests together; None for each by itself.
            watch: who cuts off what nobody waits for any more; the batcher's own.
            max_rows: the most images or examples in one request.
        """
        self.models = models
        self.max_bytes = max_bytes
        self._max_rows = max_rows
        self.observer = observer
        self._keeper = keeper
        self._turns = turns or Turns(sys.maxsize, 0)
        self._batcher = batcher
        self._watch = watch or Watch()
        self._waiting_outside: Callable[[], int] = lambda: 0

    @property
    def queued(self) -> int:
        """Counts the requests that wait for their turn."""
        batched = self._batcher.waiting if self._batcher else 0
        return self._turns.waiting + batched + self._waiting_outside()

    def count_also(self, waiting: Callable[[], int]) -> None:
        """Counts those who wait for a thread, who have not come in yet, with the rest."""
        self._waiting_outside = waiting

    @_told("Predict")
    def predict(
        self, request: predict_pb2.PredictRequest, deadline: float | None = None, cancelled: Cancelled = None
    ) -> predict_pb2.PredictResponse:
        """Runs a signature on tensors."""
        require_rows(request, self._max_rows)
        if self._batcher is None:
            with self._turn(deadline, cancelled):
                return answers.predict(self.models.find(request), request, self.max_bytes)
        batcher = self._batcher

        def run(servable: Servable, key: str, tensors: Mapping[str, tf.Tensor]) -> Mapping[str, np.ndarray]:
            alike = tuple(tuple(tensors[alias].shape[1:]) for alias in sorted(tensors))
            return batcher.run((servable, key, alike), servable.signatures[key], tensors, deadline, cancelled)

        return answers.predict(self.models.find(request), request, self.max_bytes, run)

    @_told("Classify")
    def classify(
        self,
        request: classification_pb2.ClassificationRequest,
        deadline: float | None = None,
        cancelled: Cancelled = None,
    ) -> classification_pb2.ClassificationResponse:
        """Classifies tf.Examples."""
        require_rows(request, self._max_rows)
        with self._turn(deadline, cancelled):
            return answers.classify(self.models.find(request), request)

    @_told("Regress")
    def regress(
        self, request: regression_pb2.RegressionRequest, deadline: float | None = None, cancelled: Cancelled = None
    ) -> regression_pb2.RegressionResponse:
        """Refuses: no signature of the contract is a regression."""
        answers.refuse_regression(self.models.find(request), request.model_spec.signature_name)

    @_told("MultiInference")
    def multi_inference(
        self, request: inference_pb2.MultiInferenceRequest, deadline: float | None = None, cancelled: Cancelled = None
    ) -> inference_pb2.MultiInferenceResponse:
        """Classifies the same tf.Examples with several signatures of one model, which the first task names."""
        if not request.tasks:
            raise invalid("ModelSpec has no name specified.")
        require_rows(request, self._max_rows)
        with self._turn(deadline, cancelled):
            return answers.multi_inference(self.models.find(request.tasks[0]), request)

    @_told("GetModelMetadata")
    def metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Describes the signatures."""
        require_metadata_fields(request)
        return describe(self.models.find(request))

    @_told("GetModelStatus")
    def status(
        self, request: get_model_status_pb2.GetModelStatusRequest
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """Lists the versions of a model, newest first, with their states."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        states = self.models.states(request.model_spec)
        return get_model_status_pb2.GetModelStatusResponse(model_version_status=states)

    @_told("HandleReloadConfigRequest")
    def reload(self, request: model_management_pb2.ReloadConfigRequest) -> model_management_pb2.ReloadConfigResponse:
        """Replaces the configuration; answered once what is new is loaded."""
        if self._keeper is None:
            raise Refusal(grpc.StatusCode.UNIMPLEMENTED, "This server's models were given to it at its start.")
        self._keeper.reload(request)
        response = model_management_pb2.ReloadConfigResponse()
        response.status.SetInParent()
        return response

    def turned_away(self, method: str, refusal: Refusal) -> None:
        """Tells the observer of a request that was refused before it was read, by whatever name."""
        self._tell(method if method in METHODS else "", None, None, refusal.code, 0.0)

    def wait_idle(self, seconds: float) -> bool:
        """Waits until no model runs; returns whether that came within so many seconds."""
        return self._watch.wait_idle(seconds)

    @contextlib.contextmanager
    def _turn(self, deadline: float | None, cancelled: Cancelled) -> Iterator[None]:
        """Waits for a turn, and cuts off what the block runs once nobody waits for it."""
        wanted = functools.partial(require_wanted, deadline, cancelled)
        with self._turns.turn(deadline, cancelled), self._watch.over(wanted):
            yield

    def _tell(self, method: str, request: Any, response: Any, code: grpc.StatusCode, seconds: float) -> None:
        if self.observer is None:
            return
        asked = request.tasks[0] if method == "MultiInference" and request.tasks else request
        name = asked.model_spec.name if hasattr(asked, "model_spec") else ""
        answered = response.results[0] if method == "MultiInference" and response is not None else response
        spec = getattr(answered, "model_spec", None)
        version = spec.version.value if spec is not None and spec.HasField("version") else None
        try:
            self.observer.observe(method, name if name in self.models.names else "", version, code, seconds)
        except Exception:
            _log.exception("the observer failed")
