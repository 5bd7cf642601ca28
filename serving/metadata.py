"""What a model says of itself: the signatures, as its SavedModel has them."""

from tensorflow_serving.apis import get_model_metadata_pb2

from serving.refusal import invalid
from serving.servables import Servable

_METADATA_FIELD = "signature_def"


def require_metadata_fields(request: get_model_metadata_pb2.GetModelMetadataRequest) -> None:
    """Checks that a metadata request asks for `signature_def` and nothing else.

    Raises:
        Refusal: INVALID_ARGUMENT, where it does not.
    """
    if not request.metadata_field:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != _METADATA_FIELD:
            raise invalid(f"Metadata field {field} is not supported")


def describe(servable: Servable) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """Describes all signatures of a model, as its SavedModel has them."""
    response = get_model_metadata_pb2.GetModelMetadataResponse(model_spec=servable.model_spec())
    signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=dict(servable.signature_defs))
    response.metadata[_METADATA_FIELD].Pack(signatures)
    return response
