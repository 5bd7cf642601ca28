"""TF Serving's messages as JSON: requests by rows or columns into tensors and tf.Examples, and responses back.

Every function raises StatusError INVALID_ARGUMENT for what it cannot convert, or UnicodeEncodeError for half of a
surrogate pair.
"""

import base64
import binascii
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, input_pb2

from serving.errors import StatusError, invalid
from serving.tensors import dtype_name, to_tensor

# A JSON value takes up to 100 bytes in memory where it takes 2 in the body; this many values are an image of 1.3
# megapixels written as numbers, and hold at most some 400 MB.
DEFAULT_MAX_VALUES = 4_000_000
_TYPES = {bool: "Bool", int: "Number", float: "Number", str: "String", list: "Array", dict: "Object"}
_MAX_SHOWN_CHARS = 60  # of a value in an error message
_PART_VALUES = 8192  # of an answer that are written at a time: some 10 ms
# Outputs with this suffix are bytes, other strings are text.
_BYTES_SUFFIX = "_bytes"


def parse(body: bytes | bytearray, max_values: int = DEFAULT_MAX_VALUES) -> dict[str, Any]:
    """Parse a request's body, a JSON object of at most `max_values` values; NaN and Infinity are numbers."""
    # Counted before anything is allocated for them; a comma inside a text counts too, which harms nobody.
    values = 1 + sum(body.count(mark) for mark in (b",", b"[", b"{"))
    if values > max_values:
        expected = f'expected at most {max_values}: send images encoded, as {{"b64": "..."}}'
        raise invalid(f"JSON of {values} values; {expected}")
    try:
        document = json.loads(body.decode("utf-8"))
    except RecursionError:
        raise invalid("JSON Parse error: nested too deeply") from None
    except ValueError as error:  # no JSON, no UTF-8, or a number of thousands of digits
        raise invalid(f"JSON Parse error: {error}") from None
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {_shown(document)} is not an object")
    return document


def tensors(
    document: Mapping[str, Any], inputs: Mapping[str, meta_graph_pb2.TensorInfo]
) -> tuple[dict[str, tensor_pb2.TensorProto], bool]:
    """Convert the tensors of a Predict request, by rows (`instances`) or by columns (`inputs`).

    Return the tensors by name, and whether they came by rows: the answer has the same form.
    """
    if "instances" in document and "inputs" in document:
        raise invalid("Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist")
    if "instances" in document:
        values, by_row = _columns_of_rows(document["instances"], inputs), True
    elif "inputs" in document:
        values, by_row = _columns(document["inputs"], inputs), False
    else:
        raise invalid("Missing 'inputs' or 'instances' key")
    return {name: _tensor(name, value, inputs[name].dtype) for name, value in values.items()}, by_row


def examples(document: Mapping[str, Any]) -> input_pb2.Input:
    """Convert the tf.Examples of a Classify or Regress request: `examples`, each merged with `context`."""
    if not isinstance(document.get("examples"), list):
        raise invalid("When method is classify or regress, key 'examples' is expected to be a list/array")
    if not document["examples"]:
        raise invalid("'examples' value is an empty array")
    read = [_example(value) for value in document["examples"]]
    result = input_pb2.Input()
    if "context" in document:
        result.example_list_with_context.context.CopyFrom(_example(document["context"]))
        result.example_list_with_context.examples.extend(read)
    else:
        result.example_list.examples.extend(read)
    return result


def predict_json(response: Any, by_row: bool) -> bytes:
    """Write a Predict response: `predictions`, one per row, or `outputs`, one per output.

    A single output has no name. Numbers take the fewest digits that read back the same; NaN and Infinity are written
    as TF Serving does. Raises StatusError INVALID_ARGUMENT by row if the outputs have different numbers of rows.
    """
    columns = {name: _values(proto) for name, proto in response.outputs.items()}
    if by_row:
        if scalars := [name for name, values in columns.items() if not values.ndim]:
            raise invalid(f"Tensor name: {scalars[0]} has no shape information; ask for it by columns, with 'inputs'")
        sizes = {name: len(values) for name, values in columns.items()}
        if len(set(sizes.values())) > 1:
            raise invalid(f"outputs have inconsistent batch sizes: {sizes}; ask for them by columns, with 'inputs'")
    if len(columns) == 1:
        body = b"".join(_write_array(*next(iter(columns.items()))))
    elif not by_row:
        body = _write_object(columns)
    else:
        rows = range(next(iter(sizes.values())))
        each = (_write_object({name: values[row, ...] for name, values in columns.items()}) for row in rows)
        body = b"[" + b",".join(each) + b"]"
    return b'{"%b":%b}' % (b"predictions" if by_row else b"outputs", body)


def classify_json(response: Any) -> bytes:
    """Write a Classify response: [label, score] pairs per example."""
    rows = [[(each.label, each.score) for each in row.classes] for row in response.result.classifications]
    scores = iter(_short(np.array([score for row in rows for _, score in row], np.float32)))
    return dumps({"results": [[[label, next(scores)] for label, _ in row] for row in rows]})


def metadata_json(response: Any) -> bytes:
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    return dumps({"model_spec": as_dict(response.model_spec), "metadata": {"signature_def": as_dict(signatures)}})


def as_dict(message: Any) -> Mapping[str, Any]:
    """Convert any message, its empty fields included."""
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def dumps(value: Any) -> bytes:
    """Write JSON in UTF-8 without white space."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def _columns_of_rows(rows: Any, inputs: Mapping[str, Any]) -> dict[str, list]:
    if not isinstance(rows, list):
        raise invalid("Expecting 'instances' to be a list/array")
    if not rows:
        raise invalid("No values in 'instances' array")
    named = [isinstance(row, dict) and not _is_base64(row) for row in rows]
    if any(named) != all(named):
        raise invalid("Expecting 'instances' to hold objects or values, but got both")
    if not named[0]:
        return {_only(inputs, "instances is a plain list"): rows}
    for number, row in enumerate(rows):
        if row.keys() != inputs.keys():
            what = f"Failed to process element: {number} of 'instances' list"
            raise invalid(f"{what}. JSON object keys {sorted(row)} must be equal to: {','.join(sorted(inputs))}")
    return {name: [row[name] for row in rows] for name in inputs}


def _columns(value: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(value, dict) or _is_base64(value):
        return {_only(inputs, "inputs is a plain value/list"): value}
    for name in inputs:
        if name not in value:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    for name in value:
        if name not in inputs:
            raise invalid(f"JSON object: does not have named input: {name}; expected {','.join(sorted(inputs))}")
    return value


def _only(inputs: Mapping[str, Any], but: str) -> str:
    if len(inputs) != 1:
        raise invalid(f"{but}, but expecting an object for each of the inputs {','.join(sorted(inputs))}")
    return next(iter(inputs))


def _tensor(name: str, value: Any, dtype: int) -> tensor_pb2.TensorProto:
    shape, leaves = _dense(name, value)
    proto = tensor_pb2.TensorProto(dtype=dtype, tensor_shape=tf.TensorShape(shape).as_proto())
    if dtype == tf.string.as_datatype_enum:
        proto.string_val.extend(_string(name, leaf) for leaf in leaves)
    else:
        proto.tensor_content = _numbers(name, leaves, dtype).tobytes()
    return proto


def _example(value: Any) -> tf.train.Example:
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {_type_name(value)}")
    example = tf.train.Example()
    for name, content in value.items():
        _fill(example.features.feature[name], name, content if isinstance(content, list) else [content])
    return example


def _fill(feature: tf.train.Feature, name: str, values: list) -> None:
    types = {int if type(value) is bool else str if _is_base64(value) else type(value) for value in values}
    if len(types) > 1:
        raise invalid(f"Unexpected element type in feature: {name} expecting one type, got {len(types)}")
    if types <= {str}:
        feature.bytes_list.value.extend(_string(name, value) for value in values)
    elif types == {float}:
        feature.float_list.value.extend(_numbers(name, values, tf.float32.as_datatype_enum).tolist())
    elif types == {int}:
        if not all(-(2**63) <= value < 2**63 for value in values):
            raise invalid(f"Feature: {name} has an element that does not fit int64.")
        feature.int64_list.value.extend(map(int, values))
    else:
        raise invalid(f"Feature: {name} has element with unexpected JSON type: {_type_name(values[0])}")


def _dense(name: str, value: Any) -> tuple[list[int], list]:
    """Flatten nested lists; return their shape and the innermost values."""
    shape: list[int] = []
    level = [value]
    while level and isinstance(level[0], list):
        if set(map(type, level)) != {list}:
            raise invalid(f"input {name}: JSON values found beside lists at level: {len(shape)}")
        sizes = set(map(len, level))
        if len(sizes) > 1:
            raise invalid(f"input {name}: Encountered lists of sizes {sorted(sizes)[:8]} at level: {len(shape)}")
        shape += sizes
        level = list(itertools.chain.from_iterable(level))
    if list in set(map(type, level)):
        raise invalid(f"input {name}: Encountered list at unexpected level: {len(shape)}")
    return shape, level


def _string(name: str, value: Any) -> bytes:
    """Convert a value of a string tensor: text, or bytes as `{"b64": ...}`."""
    if isinstance(value, dict):
        return _from_base64(name, value)
    if not isinstance(value, str):
        raise _wrong_type(name, value, tf.string.as_datatype_enum)
    return value.encode("utf-8")


def _numbers(name: str, values: Sequence, dtype: int) -> np.ndarray:
    """Convert numbers or booleans to a DataType, each within its range."""
    kind = tf.as_dtype(dtype)
    types = set(map(type, values))
    allowed = {bool} if kind.is_bool else {int} if kind.is_integer else {int, float} if kind.is_floating else set()
    if not allowed:
        raise invalid(f"input {name}: Conversion of JSON values to type: {dtype_name(dtype)} is not supported")
    if not types <= allowed:
        raise _wrong_type(name, next(value for value in values if type(value) not in allowed), dtype)
    try:
        if not kind.is_floating:
            return np.array(values, kind.as_numpy_dtype)
        wide = np.array(values, np.float64)
    except OverflowError as error:
        raise invalid(f"input {name}: JSON value out of the range of {dtype_name(dtype)}: {error}") from None
    with np.errstate(over="ignore"):
        narrow = wide.astype(kind.as_numpy_dtype)
    if np.any(np.isinf(narrow) & np.isfinite(wide)):
        raise invalid(f"input {name}: Cannot convert JSON value to {dtype_name(dtype)} without loss of precision.")
    return narrow


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _type_name(value: Any) -> str:
    return _TYPES.get(type(value), "Null")


def _shown(value: Any) -> str:
    """Format a value for an error message, cut to a readable length."""
    if isinstance(value, (list, dict)):
        return f"{_type_name(value).lower()} of {len(value)}"
    text = json.dumps(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "..."


def _from_base64(name: str, value: dict) -> bytes:
    if not _is_base64(value):
        raise invalid(f"input {name}: JSON Value: {_shown(value)} not formatted correctly for base64 data")
    try:
        text = "".join(value["b64"].split()).encode("ascii")  # line breaks are usual; padding may be left out
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise invalid(f"input {name}: Unable to base64 decode {_shown(value['b64'])}: {error}") from None


def _wrong_type(name: str, value: Any, dtype: int) -> StatusError:
    found = f"JSON Value: {_shown(value)} Type: {_type_name(value)}"
    return invalid(f"input {name}: {found} is not of expected type: {dtype_name(dtype)}")


def _values(proto: tensor_pb2.TensorProto) -> np.ndarray:
    return np.asarray(to_tensor(proto).numpy(), object if proto.dtype == tf.string.as_datatype_enum else None)


def _write_object(columns: Mapping[str, np.ndarray]) -> bytes:
    members = (b"%b:%b" % (dumps(name), b"".join(_write_array(name, values))) for name, values in columns.items())
    return b"{%b}" % b",".join(members)


def _write_array(name: str, values: np.ndarray) -> Iterator[bytes]:
    """Write an array of any rank in parts: no other thread runs while Python converts one."""
    if values.size <= _PART_VALUES:
        yield dumps(_plain(name, values))
        return
    each = values.size // len(values)
    step = max(_PART_VALUES // each, 1)
    for start in range(0, len(values), step):
        yield b"," if start else b"["
        if each > _PART_VALUES:
            yield from _write_array(name, values[start])
        else:
            yield dumps(_plain(name, values[start : start + step]))[1:-1]
    yield b"]"


def _plain(name: str, values: np.ndarray) -> Any:
    """Convert an array to what `dumps` takes."""
    if values.dtype == object:
        return np.vectorize(lambda value: _text(name, value), otypes=[object])(values).tolist()
    return _short(values) if np.issubdtype(values.dtype, np.floating) else values.tolist()


def _text(name: str, value: bytes) -> Any:
    if name.endswith(_BYTES_SUFFIX):
        return {"b64": base64.b64encode(value).decode("ascii")}
    return value.decode("utf-8", "replace")


def _short(values: np.ndarray) -> Any:
    """Return floats whose shortest text reads back the same: 0.2, not 0.20000000298023224."""
    return values.tolist() if values.dtype == np.float64 else values.astype("S").astype(np.float64).tolist()
