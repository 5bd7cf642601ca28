"""JSON requests into TF Serving's messages: rows and columns into tensors, objects into tf.Examples, all bounded."""

import json
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import input_pb2

from serving.refusal import invalid
from serving.rest.values import dense, is_base64, numbers, shown, string, type_name, utf8

# A JSON value takes up to 100 bytes in memory where it takes 2 in the body; this many values are an image of 1.3
# megapixels written as numbers, and hold at most some 400 MB.
DEFAULT_MAX_VALUES = 4_000_000


def parse(body: bytes | bytearray, max_values: int = DEFAULT_MAX_VALUES) -> dict[str, Any]:
    """Parses a request's body, a JSON object; NaN and Infinity are numbers, as for TF Serving.

    Raises:
        Refusal: INVALID_ARGUMENT, for what is no JSON, no object, nested too deeply or of more than `max_values`
            values.
    """
    # Counted before anything is allocated for them; a comma inside a text counts too, which harms nobody.
    values = 1 + sum(body.count(mark) for mark in (b",", b"[", b"{"))
    if values > max_values:
        raise invalid(
            f'JSON of {values} values; expected at most {max_values}: send images encoded, as {{"b64": "..."}}'
        )
    try:
        document = json.loads(body.decode("utf-8"))
    except RecursionError:
        raise invalid("JSON Parse error: nested too deeply") from None
    except ValueError as error:  # no JSON, no UTF-8, or a number of thousands of digits
        raise invalid(f"JSON Parse error: {error}") from None
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {shown(document)} is not an object")
    return document


def signature_name(document: Mapping[str, Any]) -> str:
    """Reads the signature that a request names; empty where it names none.

    Raises:
        Refusal: INVALID_ARGUMENT, for a name that is no text.
    """
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid("'signature_name' key must be a string value.")
    return name


def tensors(
    document: Mapping[str, Any], inputs: Mapping[str, meta_graph_pb2.TensorInfo]
) -> tuple[dict[str, tensor_pb2.TensorProto], bool]:
    """Reads the tensors of a Predict request, by rows (`instances`) or by columns (`inputs`).

    Args:
        document: the request.
        inputs: the signature's inputs by name.

    Returns:
        The tensors by name, and whether they came by rows: the answer goes the way that the request came.

    Raises:
        Refusal: INVALID_ARGUMENT, where the request fits neither form or not the inputs' types.
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
    """Reads the tf.Examples of a Classify or Regress request: `examples`, and `context`, which joins each.

    Raises:
        Refusal: INVALID_ARGUMENT, where they are missing or malformed.
    """
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


def _columns_of_rows(rows: Any, inputs: Mapping[str, Any]) -> dict[str, list]:
    if not isinstance(rows, list):
        raise invalid("Expecting 'instances' to be a list/array")
    if not rows:
        raise invalid("No values in 'instances' array")
    named = [isinstance(row, dict) and not is_base64(row) for row in rows]
    if any(named) != all(named):
        raise invalid("Expecting 'instances' to hold objects or values, but got both")
    if not named[0]:
        return {_only(inputs, "instances is a plain list"): rows}
    for number, row in enumerate(rows):
        if row.keys() != inputs.keys():
            raise invalid(
                f"Failed to process element: {number} of 'instances' list. JSON object keys {sorted(row)} must be "
                f"equal to: {','.join(sorted(inputs))}"
            )
    return {name: [row[name] for row in rows] for name in inputs}


def _columns(value: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(value, dict) or is_base64(value):
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
    shape, leaves = dense(name, value)
    dims = [tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in shape]
    proto = tensor_pb2.TensorProto(dtype=dtype, tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=dims))
    if dtype == tf.string.as_datatype_enum:
        proto.string_val.extend(string(name, leaf) for leaf in leaves)
    else:
        proto.tensor_content = numbers(name, leaves, dtype).tobytes()
    return proto


def _example(value: Any) -> tf.train.Example:
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {type_name(value)}")
    example = tf.train.Example()
    for name, content in value.items():
        utf8(name, name)
        _fill(example.features.feature[name], name, content if isinstance(content, list) else [content])
    return example


def _fill(feature: tf.train.Feature, name: str, values: list) -> None:
    types = {int if type(value) is bool else str if is_base64(value) else type(value) for value in values}
    if len(types) > 1:
        raise invalid(f"Unexpected element type in feature: {name} expecting one type, got {len(types)}")
    if types <= {str}:
        feature.bytes_list.value.extend(string(name, value) for value in values)
    elif types == {float}:
        feature.float_list.value.extend(numbers(name, values, tf.float32.as_datatype_enum).tolist())
    elif types == {int}:
        if not all(-(2**63) <= value < 2**63 for value in values):
            raise invalid(f"Feature: {name} has an element that is no int64.")
        feature.int64_list.value.extend(map(int, values))
    else:
        raise invalid(f"Feature: {name} has element with unexpected JSON type: {type_name(values[0])}")
