"""Boxes against plain Python, one box at a time."""

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from overfeat_tf import boxes as box_ops

number = st.floats(-8, 8, width=32).map(lambda x: round(x * 16) / 16)  # sixteenths: float32 is exact on these
any_box = st.tuples(number, number, number, number)
proper_box = any_box.map(lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]) + 0.5, max(b[1], b[3]) + 0.5))


def plain_area(box):
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def plain_intersection(a, b):
    return plain_area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def plain_iou(a, b):
    union = plain_area(a) + plain_area(b) - plain_intersection(a, b)
    return plain_intersection(a, b) / union if union else 0.0


def tensor(values):
    return tf.constant(values, tf.float32)


@given(st.lists(any_box, min_size=1, max_size=6), st.lists(any_box, min_size=1, max_size=6))
def test_area_intersection_and_iou_of_all_pairs(some, others):
    a, b = tensor(some)[:, None], tensor(others)[None]
    np.testing.assert_array_equal(box_ops.area(tensor(some)), [plain_area(box) for box in some])
    shared = [[plain_intersection(x, y) for y in others] for x in some]
    np.testing.assert_array_equal(box_ops.intersection(a, b), shared)
    np.testing.assert_allclose(box_ops.iou(a, b), [[plain_iou(x, y) for y in others] for x in some], rtol=1e-6)


def plain_giou(a, b):
    hull = plain_area((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
    union = plain_area(a) + plain_area(b) - plain_intersection(a, b)
    return plain_iou(a, b) - ((hull - union) / hull if hull else 0.0)


@given(st.lists(any_box, min_size=1, max_size=6), st.lists(any_box, min_size=1, max_size=6))
def test_giou_of_all_pairs(some, others):
    found = box_ops.giou(tensor(some)[:, None], tensor(others)[None]).numpy()
    np.testing.assert_allclose(found, [[plain_giou(x, y) for y in others] for x in some], rtol=1e-5, atol=1e-6)
    assert found.min() >= -1 and found.max() <= 1


@given(st.lists(proper_box, min_size=1, max_size=6))
def test_iou_is_symmetric_within_0_and_1_and_1_for_itself(values):
    boxes = tensor(values)
    iou = box_ops.iou(boxes[:, None], boxes[None]).numpy()
    np.testing.assert_array_equal(iou, iou.T)
    np.testing.assert_array_equal(np.diag(iou), 1)
    assert iou.min() >= 0 and iou.max() <= 1


def test_iou_of_boxes_without_area_is_0():
    point, inside_out = tensor([1, 1, 1, 1]), tensor([3, 3, 1, 1])
    for a, b in [(point, point), (inside_out, inside_out), (point, tensor([0, 0, 2, 2]))]:
        assert box_ops.iou(a, b).numpy() == 0


@given(st.lists(any_box, min_size=1, max_size=4), st.sampled_from([(1.0, 1.0), (2.0, 5.0)]))
def test_clip(values, size):
    height, width = size
    plain = [[min(max(v, 0), limit) for v, limit in zip(b, (height, width) * 2, strict=True)] for b in values]
    np.testing.assert_array_equal(box_ops.clip(tensor(values), height, width), plain)
    np.testing.assert_array_equal(box_ops.clip(tensor(values), *map(tf.constant, size)), plain)


@given(proper_box, number)
def test_flip_mirrors_and_undoes_itself(box, width):
    flipped = box_ops.flip(tensor(box), width)
    np.testing.assert_array_equal(flipped, [box[0], width - box[3], box[2], width - box[1]])
    np.testing.assert_array_equal(box_ops.flip(flipped, width), box)
    assert box_ops.area(flipped).numpy() == plain_area(box)


@given(st.lists(st.tuples(any_box, number, number), min_size=1, max_size=4), st.sampled_from([1.0, 32.0, 221.0]))
def test_window_coordinates_round_trip(rows, window):
    boxes = tensor([box for box, _, _ in rows])
    origins = tensor([row[1:] for row in rows])
    edges = box_ops.to_window(boxes, origins, window)
    plain = [[(b[0] - y) / window, (b[1] - x) / window, (b[2] - y) / window, (b[3] - x) / window] for b, y, x in rows]
    np.testing.assert_allclose(edges, plain, rtol=1e-6)
    np.testing.assert_allclose(box_ops.from_window(edges, origins, window), boxes, atol=1e-5)


def test_a_window_sees_itself_as_the_unit_square():
    window = tensor([[48, 60, 48 + 221, 60 + 221]])
    np.testing.assert_array_equal(box_ops.to_window(window, tensor([[48, 60]]), 221.0), [[0, 0, 1, 1]])


@pytest.mark.parametrize("box", [(0, 0, 2, 4), (-1, 3, 5, 4)])
def test_centre(box):
    np.testing.assert_array_equal(box_ops.centre(tensor(box)), [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])


side = st.floats(1 / 128, 128, width=32)


@given(st.lists(st.tuples(number, number, side, side), min_size=1, max_size=5), st.sampled_from(box_ops.BOX_FORMS))
def test_forms_round_trip(rows, form):
    edges = tensor([(y, x, y + h, x + w) for y, x, h, w in rows])
    values = box_ops.encode(edges, form).numpy()
    for row, (y, x, h, w) in zip(values, rows, strict=True):
        plain = (y, x, y + h, x + w)
        if form == "center_size":
            plain = (y + h / 2 - 0.5, x + w / 2 - 0.5, math.log(h), math.log(w))
        np.testing.assert_allclose(row, plain, rtol=1e-3, atol=2e-3)  # y + h - y loses what float32 does
    np.testing.assert_allclose(box_ops.decode(values, form), edges, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("values", [(0, 0, 1e30, -1e30), (0, 0, 500, 500), (3, -3, -500, 0)])
def test_absurd_sizes_decode_to_finite_boxes_with_finite_gradients(values):
    numbers = tensor(values)
    with tf.GradientTape() as tape:
        tape.watch(numbers)
        found = box_ops.decode(numbers, "center_size")
    assert np.isfinite(found).all() and np.isfinite(tape.gradient(found, numbers)).all()


def test_a_box_without_size_has_finite_numbers_and_the_window_is_zero():
    for box in ([0, 0, 0, 0], [1, 1, 0, 0]):
        assert np.isfinite(box_ops.encode(tensor(box), "center_size")).all()
    np.testing.assert_array_equal(box_ops.encode(tensor([0, 0, 1, 1]), "center_size"), [0, 0, 0, 0])
