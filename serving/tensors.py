"""Decoding and encoding of tensor protos; what a proto declares is checked before memory is allocated for it."""

import math

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from serving.errors import invalid

# The most dimensions a TensorFlow shape can have.
_MAX_RANK = 254
# What one element of a string tensor occupies besides its characters (sizeof tstring).
_STRING_ELEMENT_BYTES = 24
# The protocol's key bytes (field number << 3 | 2, "length-delimited") of the fields that hold packed little-endian
# numbers.
_PACKED_KEYS = {tf.float32: b"\x2a", tf.float64: b"\x32"}  # float_val = 5, double_val = 6
_VALUE_FIELDS = {
    tf.string: "string_val",
    tf.bool: "bool_val",
    tf.int8: "int_val",
    tf.int16: "int_val",
    tf.int32: "int_val",
    tf.uint8: "int_val",
    tf.uint16: "int_val",
    tf.int64: "int64_val",
    tf.uint32: "uint32_val",
    tf.uint64: "uint64_val",
}


def dtype_name(dtype: int) -> str:
    """Return the name of a DataType as TensorFlow's C++ does: `float`, `string`, `uint8`."""
    try:
        return types_pb2.DataType.Name(dtype)[len("DT_") :].lower()
    except ValueError:
        return f"data type {dtype}"


def shape_text(shape: tensor_shape_pb2.TensorShapeProto) -> str:
    """Format a shape as TensorFlow does: `[?,?,?,3]`, or `<unknown>`."""
    if shape.unknown_rank:
        return "<unknown>"
    return "[" + ",".join(str(dim.size) if dim.size >= 0 else "?" for dim in shape.dim) + "]"


def decode_input(
    alias: str, index: int, proto: tensor_pb2.TensorProto, expected: meta_graph_pb2.TensorInfo, max_bytes: int
) -> tf.Tensor:
    """Decode one input of a request after checking it against the signature and the memory limit.

    Args:
        alias: the input's name in the signature.
        index: its index among the signature's inputs, for the message.
        proto: the tensor.
        expected: the dtype and shape that the signature expects.
        max_bytes: the most bytes that the tensor may occupy in memory.

    Raises:
        StatusError: INVALID_ARGUMENT; a malformed proto, another dtype or shape, or more than `max_bytes`.
    """
    dims = proto.tensor_shape.dim
    # The rank comes first: multiplying a million dimensions out would take minutes.
    if proto.tensor_shape.unknown_rank or len(dims) > _MAX_RANK or any(dim.size < 0 for dim in dims):
        raise invalid(f"tensor parsing error: {alias}")
    if proto.dtype != expected.dtype:
        raise invalid(
            f"Expects arg[{index}] to be {dtype_name(expected.dtype)} but {dtype_name(proto.dtype)} is provided"
        )
    if not tf.TensorShape(expected.tensor_shape).is_compatible_with([dim.size for dim in dims]):
        raise invalid(
            f"Expects arg[{index}] to have shape {shape_text(expected.tensor_shape)} "
            f"but {shape_text(proto.tensor_shape)} is provided"
        )
    size = declared_bytes(proto)
    if size > max_bytes:
        raise invalid(
            f"input {alias} of shape {shape_text(proto.tensor_shape)} declares {size} bytes, more than the "
            f"{max_bytes} bytes that this server takes"
        )
    try:
        return to_tensor(proto)
    except tf.errors.InvalidArgumentError:
        raise invalid(f"tensor parsing error: {alias}") from None


def declared_bytes(proto: tensor_pb2.TensorProto) -> int:
    """Count the bytes that a tensor proto will occupy, which may be far more than it holds.

    TensorFlow repeats the last value of a proto that holds fewer values than its shape declares. Dimensions of 0 count
    as 1, so that an empty batch of huge images is rejected like one such image.
    """
    elements = math.prod(max(dim.size, 1) for dim in proto.tensor_shape.dim)
    dtype = tf.as_dtype(proto.dtype)
    if dtype != tf.string:
        return elements * dtype.size
    held = proto.string_val
    filled = max(elements - len(held), 0) * (len(held[-1]) if held else 0)
    return elements * _STRING_ELEMENT_BYTES + sum(map(len, held)) + filled


def to_tensor(proto: tensor_pb2.TensorProto) -> tf.Tensor:
    """Decode a tensor proto by TensorFlow's rules, in C++ as TF Serving does.

    tf.make_ndarray differs from it (on too many values, on strings in tensor_content) and is slow on long lists.

    Raises:
        tf.errors.InvalidArgumentError: the proto is malformed.
    """
    return tf.io.parse_tensor(proto.SerializeToString(), tf.as_dtype(proto.dtype))


def to_proto(tensor: tf.Tensor | np.ndarray) -> tensor_pb2.TensorProto:
    """Encode a tensor or array with its values in the typed fields (`float_val` ...), as TF Serving does.

    Many clients read those fields directly and never look at tensor_content.
    """
    dtype = tf.as_dtype(tensor.dtype)
    shape = tf.TensorShape(tensor.shape).as_proto()
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum, tensor_shape=shape)
    array = tensor if isinstance(tensor, np.ndarray) else tensor.numpy()
    values = np.asarray(array, object if dtype == tf.string else None)
    if dtype in _PACKED_KEYS:
        # A list of a million Python floats takes 0.2 s; the same bytes in the protocol's own packed form take 2 ms.
        # A proto with nothing but tensor_content is one key byte, the length and the bytes; an empty one is empty.
        little_endian = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
        packed = tensor_pb2.TensorProto(tensor_content=little_endian).SerializeToString()
        proto.MergeFromString(_PACKED_KEYS[dtype] + packed[1:] if packed else b"")
    elif dtype in _VALUE_FIELDS:
        getattr(proto, _VALUE_FIELDS[dtype]).extend(values.reshape(-1).tolist())
    else:  # half and complex numbers have encodings of their own
        proto = tf.make_tensor_proto(values, dtype)
    return proto
