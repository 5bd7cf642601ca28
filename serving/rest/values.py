"""JSON values into what tensors hold: nested lists taken apart, numbers and texts checked, bytes out of base64."""

import base64
import binascii
import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from serving.refusal import Refusal, invalid
from serving.tensors import dtype_name

_TYPES = {bool: "Bool", int: "Number", float: "Number", str: "String", list: "Array", dict: "Object"}
# What of a value an error repeats.
_SHOWN_CHARS = 60


def dense(name: str, value: Any) -> tuple[list[int], list]:
    """Takes nested lists apart, a level at a time: their shape, and what is in the innermost.

    Raises:
        Refusal: INVALID_ARGUMENT, for lists of unequal lengths or depths.
    """
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


def string(name: str, value: Any) -> bytes:
    """Reads what a string tensor holds: a text, or bytes as `{"b64": ...}`.

    Raises:
        Refusal: INVALID_ARGUMENT, for anything else.
    """
    if isinstance(value, dict):
        return _from_base64(name, value)
    if not isinstance(value, str):
        raise _wrong_type(name, value, tf.string.as_datatype_enum)
    return utf8(name, value)


def numbers(name: str, values: Sequence, dtype: int) -> np.ndarray:
    """Reads numbers or truth values of a DataType, none of which may be out of its range.

    Raises:
        Refusal: INVALID_ARGUMENT, for anything else.
    """
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


def is_base64(value: Any) -> bool:
    """Tells bytes, `{"b64": ...}`, from other objects."""
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def type_name(value: Any) -> str:
    """Names a value's JSON type as TF Serving does."""
    return _TYPES.get(type(value), "Null")


def shown(value: Any) -> str:
    """Writes a value for a message, cut to what a person reads."""
    if isinstance(value, (list, dict)):
        return f"{type_name(value).lower()} of {len(value)}"
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."


def utf8(name: str, text: str) -> bytes:
    """Encodes a text.

    Raises:
        Refusal: INVALID_ARGUMENT, for half of a surrogate pair, which JSON can write.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise invalid(f'{shown(name)}: JSON text that is no UTF-8; send bytes as {{"b64": "..."}}') from None


def _from_base64(name: str, value: dict) -> bytes:
    if not is_base64(value):
        raise invalid(f"input {name}: JSON Value: {shown(value)} not formatted correctly for base64 data")
    try:
        text = "".join(value["b64"].split()).encode("ascii")  # line breaks are usual; padding may be left out
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise invalid(f"input {name}: Unable to base64 decode {shown(value['b64'])}: {error}") from None


def _wrong_type(name: str, value: Any, dtype: int) -> Refusal:
    found = f"JSON Value: {shown(value)} Type: {type_name(value)}"
    return invalid(f"input {name}: {found} is not of expected type: {dtype_name(dtype)}")
