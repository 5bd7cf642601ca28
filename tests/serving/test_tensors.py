"""Tensor protos there and back, by TensorFlow's rules."""

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from serving.tensors import declared_bytes, to_proto, to_tensor

CASES = [
    np.array([[1.5, -np.inf, np.nan]], np.float32),
    np.array([0.1, 1e300]),
    np.array([-128, 127], np.int8),
    np.array([[0], [65535]], np.uint16),
    np.array([-(2**31)], np.int32),
    np.array([-(2**63), 2**63 - 1]),
    np.array([2**64 - 1], np.uint64),
    np.array([True, False]),
    np.array([1.5], np.float16),
    np.array([1.5], ml_dtypes.bfloat16),
    np.array([b"", b"zeros\0\0", b"\xff"], object),
    np.zeros((0, 3), np.float32),
    np.zeros((2, 0), np.int64),
    np.array(2.5, np.float32),
    np.array(b"alone", object),
]


@pytest.mark.parametrize("array", CASES, ids=lambda array: f"{array.dtype}{list(array.shape)}")
def test_a_tensor_comes_back_and_stock_clients_read_it(array):
    proto = to_proto(tf.constant(array))
    for read in (to_tensor(proto).numpy(), tf.make_ndarray(proto)):
        np.testing.assert_array_equal(read, array)
        assert np.asarray(read).shape == array.shape


def test_values_are_in_the_fields_that_clients_read():
    assert list(to_proto(tf.constant([1.0, 2.0])).float_val) == [1.0, 2.0]
    assert list(to_proto(tf.constant([3], tf.int32)).int_val) == [3]
    assert list(to_proto(tf.constant(["a"])).string_val) == [b"a"]


def test_declared_bytes_count_what_would_be_filled_up():
    proto = tf.make_tensor_proto(np.zeros(1, np.int32), shape=[1])
    proto.tensor_shape.dim[0].size = 1000
    assert declared_bytes(proto) == 4000
    strings = tf.make_tensor_proto([b"12345678"])
    strings.tensor_shape.dim[0].size = 1000
    assert declared_bytes(strings) == 1000 * (24 + 8)
