"""The door: every request to this server goes through here, whatever protocol brought it.

TF Serving's request messages in, its response messages out, and a Refusal for whatever goes wrong: gRPC and REST only
translate. Requests are counted and timed here, once each.
"""

import functools
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

from serving import answers
from serving.refusal import Refusal, invalid, refusal_of
from serving.servables import Models

_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Is told of every request, once it is answered or refused; what it raises is logged and harms no request."""

    def observe(self, method: str, model: str, version: int | None, code: grpc.StatusCode, seconds: float) -> None:
        """Takes one request.

        Args:
            method: the RPC's name, such as `Predict`.
            model: the model asked, empty where it is none that is served: names from outside are without number.
            version: the version that answered, None where none did.
            code: the status of the answer.
            seconds: from its coming in to its answer.
        """


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
            except Exception as error:
                refusal = refusal_of(error)
                code = refusal.code
                if code is grpc.StatusCode.INTERNAL:
                    _log.exception("%s failed", name)
                raise refusal from error
            finally:
                self._tell(name, request, response, code, time.perf_counter() - begun)

        return handle

    return wrap


class Door:
    """Answers TF Serving's requests about the models that are served; safe to call from any thread.

    Every method raises Refusal and nothing else.

    Attributes:
        models: what is served; `str(models)` says it in words.
        observer: who is told of every request; may be set at any time.
    """

    def __init__(self, models: Models, max_bytes: int, observer: Observer | None = None):
        """Takes what is served, the most that one tensor of a request may occupy, and who is told."""
        self.models = models
        self.max_bytes = max_bytes
        self.observer = observer

    @property
    def queued(self) -> int:
        """Counts the requests that wait for their turn."""
        return 0

    @_told("Predict")
    def predict(
        self,
        request: predict_pb2.PredictRequest,
        deadline: float | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> predict_pb2.PredictResponse:
        """Runs a signature on tensors.

        Args:
            request: what to run, and on what.
            deadline: when nobody waits for the answer any more, as `time.monotonic()` counts; None for never.
            cancelled: says whether the client is gone; a request that still waits is not run then.
        """
        return answers.predict(self.models.find(request), request, self.max_bytes)

    @_told("Classify")
    def classify(self, request: classification_pb2.ClassificationRequest) -> classification_pb2.ClassificationResponse:
        """Classifies tf.Examples."""
        return answers.classify(self.models.find(request), request)

    @_told("Regress")
    def regress(self, request: regression_pb2.RegressionRequest) -> regression_pb2.RegressionResponse:
        """Refuses: no signature of the contract is a regression."""
        answers.refuse_regression(self.models.find(request), request.model_spec.signature_name)

    @_told("MultiInference")
    def multi_inference(self, request: inference_pb2.MultiInferenceRequest) -> inference_pb2.MultiInferenceResponse:
        """Classifies the same tf.Examples with several signatures of one model, which the first task names."""
        if not request.tasks:
            raise invalid("ModelSpec has no name specified.")
        return answers.multi_inference(self.models.find(request.tasks[0]), request)

    @_told("GetModelMetadata")
    def metadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Describes the signatures."""
        answers.require_metadata_fields(request)
        return answers.metadata(self.models.find(request))

    @_told("GetModelStatus")
    def status(
        self, request: get_model_status_pb2.GetModelStatusRequest
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """Lists the versions of a model: all of them available, since the port opens only when they are."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        response = get_model_status_pb2.GetModelStatusResponse()
        for servable in self.models.versions(request.model_spec):
            status = response.model_version_status.add(version=servable.version)
            status.state = get_model_status_pb2.ModelVersionStatus.AVAILABLE
            status.status.SetInParent()  # present and empty, as TF Serving sends it: OK, no message
        return response

    @_told("HandleReloadConfigRequest")
    def reload(self, request: model_management_pb2.ReloadConfigRequest) -> model_management_pb2.ReloadConfigResponse:
        """Refuses: what is served is given at the start."""
        message = "This server cannot reload its configuration; start it again with the models to serve."
        raise Refusal(grpc.StatusCode.UNIMPLEMENTED, message)

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
