"""TF Serving's response messages as its REST API writes them: JSON by rows or by columns; HTTP codes of errors."""

import base64
import json
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
from google.protobuf import json_format
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import get_model_metadata_pb2

from serving.errors import invalid
from serving.tensors import to_tensor

# TF Serving's table (http_server.cc); other codes become 500.
HTTP_CODES = {
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}
# Outputs with this suffix are bytes, other strings are text.
_BYTES_SUFFIX = "_bytes"


def predict_json(response: Any, by_row: bool) -> bytes:
    """Write a Predict response: `predictions`, one per row, or `outputs`, one per output.

    A single output has no name. Numbers take the fewest digits that read back the same; NaN and Infinity are written
    as TF Serving does. Raises StatusError INVALID_ARGUMENT by row if the outputs have different numbers of rows.
    """
    columns = {name: _values(name, proto) for name, proto in response.outputs.items()}
    if not by_row:
        return dumps({"outputs": columns if len(columns) > 1 else next(iter(columns.values()))})
    sizes = {name: _rows(name, proto) for name, proto in response.outputs.items()}
    if len(set(sizes.values())) > 1:
        raise invalid(f"outputs have inconsistent batch sizes: {sizes}; ask for them by columns, with 'inputs'")
    if len(columns) == 1:
        return dumps({"predictions": next(iter(columns.values()))})
    rows = zip(*columns.values(), strict=True)
    return dumps({"predictions": [dict(zip(columns, row, strict=True)) for row in rows]})


def classify_json(response: Any) -> bytes:
    """Write a Classify response: [label, score] pairs per example."""
    rows = [[(each.label, each.score) for each in row.classes] for row in response.result.classifications]
    scores = iter(_short(np.array([score for row in rows for _, score in row], np.float32)))
    return dumps({"results": [[[label, next(scores)] for label, _ in row] for row in rows]})


def regress_json(response: Any) -> bytes:
    """Write a Regress response: a value per example."""
    values = np.array([each.value for each in response.result.regressions], np.float32)
    return dumps({"results": _short(values)})


def status_json(response: Any) -> bytes:
    """Write the states of a model's versions."""
    return dumps(_as_dict(response))


def metadata_json(response: Any) -> bytes:
    """Write a model's signatures."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    return dumps({"model_spec": _as_dict(response.model_spec), "metadata": {"signature_def": _as_dict(signatures)}})


def dumps(value: Any) -> bytes:
    """Write JSON in UTF-8 without white space."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def _as_dict(message: Any) -> Mapping[str, Any]:
    options = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}
    return json_format.MessageToDict(message, **options)


def _rows(name: str, proto: tensor_pb2.TensorProto) -> int:
    if not proto.tensor_shape.dim:
        raise invalid(f"Tensor name: {name} has no shape information; ask for it by columns, with 'inputs'")
    return proto.tensor_shape.dim[0].size


def _values(name: str, proto: tensor_pb2.TensorProto) -> Any:
    values = to_tensor(proto).numpy()
    if isinstance(values, bytes):  # a string without dimensions
        return _text(name, values)
    if values.dtype == object:
        texts = np.empty(values.size, object)
        texts[:] = [_text(name, value) for value in values.reshape(-1)]
        return texts.reshape(values.shape).tolist()
    return _short(values) if np.issubdtype(values.dtype, np.floating) else values.tolist()


def _text(name: str, value: bytes) -> Any:
    if name.endswith(_BYTES_SUFFIX):
        return {"b64": base64.b64encode(value).decode("ascii")}
    return value.decode("utf-8", "replace")


def _short(values: np.ndarray) -> Any:
    """Return floats whose shortest text reads back the same: 0.2, not 0.20000000298023224."""
    values = np.asarray(values)
    return values.tolist() if values.dtype == np.float64 else values.astype("S").astype(np.float64).tolist()
