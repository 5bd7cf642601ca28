"""What the readers of image headers share: numbers and pieces of a string of bytes.

Reading never fails: bytes past the end read as zeros, so a truncated header is a wrong header.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf


class Header(NamedTuple):
    """Hold what an encoded image says of itself, and the one picture in it that is to be decoded."""

    encoded: tf.Tensor  # string []: the bytes for the decoder; empty where that picture does not end
    size: tf.Tensor  # int64 [2]: height and width in pixels as stored; not positive where none was found
    corner: tf.Tensor  # int64 [2]: top and left of the decoded picture within that size (a GIF frame may be smaller)
    exif: tf.Tensor  # string []: the Exif block, empty where there is none


def seldom(function: Callable) -> Callable:
    """Keep what few images need out of line: else a graph passes through each operation of a branch not taken."""
    return tf.function(function, autograph=False, experimental_attributes={"_noinline": True})


def header(encoded: tf.Tensor, size, exif=b"", corner=(0, 0)) -> Header:
    """Assemble a Header; size and corner may be pairs."""
    size, corner = (tf.convert_to_tensor(pair, tf.int64) for pair in (size, corner))
    return Header(tf.identity(encoded), size, corner, tf.convert_to_tensor(exif))


def cut(data: tf.Tensor, at, length=2**31 - 1) -> tf.Tensor:
    """Return up to `length` bytes of a string [] from byte `at`, either of which may lie outside it."""
    at, length = (tf.maximum(tf.cast(n, tf.int64), 0) for n in (at, length))
    return tf.strings.substr(data, tf.minimum(at, tf.cast(tf.strings.length(data), tf.int64)), length)


def read(data: tf.Tensor, at, count: int, dtype: tf.DType = tf.uint8, big_endian: bool = False) -> tf.Tensor:
    """Return `count` numbers as int64 [count] from byte `at` of a string []; zeros past its end."""
    length = count * dtype.size
    numbers = tf.io.decode_raw(cut(data, at, length), dtype, little_endian=not big_endian, fixed_length=length)
    return tf.cast(numbers, tf.int64)


def number(digits: tf.Tensor) -> tf.Tensor:
    """Return int64 [...]: the number that bytes (int64 [..., n]) spell, the highest first."""
    return tf.reduce_sum(digits * [256**n for n in reversed(range(digits.shape[-1]))], axis=-1)
