"""TF Serving's two gRPC services over loaded models: which model is meant, and a status for whatever goes wrong."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving import answers
from serving.refusal import Refusal, invalid, refusal_of
from serving.servables import Models

_log = logging.getLogger(__name__)


def _with_status(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any, grpc.ServicerContext], Any]:
    """Wraps a service's method(request) so that whatever it raises becomes a status.

    A request that waited past its deadline, or whose client is gone, does not come this far: gRPC drops it.
    """

    @functools.wraps(method)
    def handle(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(self, request)
        except Exception as error:
            refusal = refusal_of(error)
            if refusal.code is grpc.StatusCode.INTERNAL:
                _log.exception("%s failed", method.__name__)
        context.abort(refusal.code, refusal.message)

    return handle


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers tensorflow.serving.PredictionService."""

    def __init__(self, models: Models, max_bytes: int):
        """Takes what is served, and the most that one tensor of a request may occupy."""
        self._models = models
        self._max_bytes = max_bytes

    @_with_status
    def Predict(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:  # noqa: N802
        """Runs a signature on tensors."""
        return answers.predict(self._models.find(request), request, self._max_bytes)

    @_with_status
    def Classify(  # noqa: N802
        self, request: classification_pb2.ClassificationRequest
    ) -> classification_pb2.ClassificationResponse:
        """Classifies tf.Examples."""
        return answers.classify(self._models.find(request), request)

    @_with_status
    def Regress(self, request: regression_pb2.RegressionRequest) -> regression_pb2.RegressionResponse:  # noqa: N802
        """Refuses: no signature of the contract is a regression."""
        answers.refuse_regression(self._models.find(request), request.model_spec.signature_name)

    @_with_status
    def MultiInference(  # noqa: N802
        self, request: inference_pb2.MultiInferenceRequest
    ) -> inference_pb2.MultiInferenceResponse:
        """Classifies the same tf.Examples with several signatures of one model, which the first task names."""
        if not request.tasks:
            raise invalid("ModelSpec has no name specified.")
        return answers.multi_inference(self._models.find(request.tasks[0]), request)

    @_with_status
    def GetModelMetadata(  # noqa: N802
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Describes the signatures."""
        answers.require_metadata_fields(request)
        return answers.metadata(self._models.find(request))


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """Answers tensorflow.serving.ModelService."""

    def __init__(self, models: Models):
        """Takes what is served."""
        self._models = models

    @_with_status
    def GetModelStatus(  # noqa: N802
        self, request: get_model_status_pb2.GetModelStatusRequest
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """Lists the versions of a model: all of them available, since the port opens only when they are."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        response = get_model_status_pb2.GetModelStatusResponse()
        for servable in self._models.versions(request.model_spec):
            status = response.model_version_status.add(version=servable.version)
            status.state = get_model_status_pb2.ModelVersionStatus.AVAILABLE
            status.status.SetInParent()  # present and empty, as TF Serving sends it: OK, no message
        return response

    @_with_status
    def HandleReloadConfigRequest(  # noqa: N802
        self, request: model_management_pb2.ReloadConfigRequest
    ) -> model_management_pb2.ReloadConfigResponse:
        """Refuses: what is served is given at the start."""
        message = "This server cannot reload its configuration; start it again with the models to serve."
        raise Refusal(grpc.StatusCode.UNIMPLEMENTED, message)
