"""What windows should answer: `assign` against loops over windows and objects in plain Python."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from overfeat_tf import geometry
from overfeat_tf.presets import PRESETS
from training.targets import BACKGROUND, IGNORED, Matching, assign, window_origins

TINY = PRESETS["tiny"]
WINDOW = TINY.window
MATCHING = Matching()


def assigned(boxes, labels, frame, side=96, fine=True, matching=MATCHING, crowd=None):
    """Run `assign`; windows' labels [h, w], edges [h, w, 4] and taught [h, w] in numpy."""
    boxes = tf.constant(np.asarray(boxes, np.float32).reshape(-1, 4))
    labels = tf.constant(np.asarray(labels, np.int32).reshape(-1))
    crowd = tf.constant(crowd if crowd is not None else [False] * len(labels), tf.bool)
    origins = window_origins(TINY, side, fine)
    targets = assign(TINY, matching, boxes, labels, crowd, tf.constant(frame, tf.float32), origins)
    return [part.numpy() for part in targets]


def expected(boxes, labels, frame, side, fine, matching=MATCHING, crowd=None):
    """Answer as `assigned`, window by window and object by object."""
    count, stride = geometry.window_count(TINY, side, fine), geometry.stride(TINY, fine)
    wanted = np.full((count, count), BACKGROUND), np.zeros((count, count, 4)), np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            window = [i * stride, j * stride, i * stride + WINDOW, j * stride + WINDOW]
            label, edges, taught = _answer(window, boxes, labels, frame, matching, crowd or [False] * len(labels))
            wanted[0][i, j], wanted[1][i, j], wanted[2][i, j] = label, edges, taught
    return wanted


def _answer(window, boxes, labels, frame, matching, crowd):
    for axis in (0, 1):
        if window[axis] <= frame[axis] - 1:
            return IGNORED, [0] * 4, 0
        if window[axis + 2] >= max(frame[axis + 2], frame[axis] + WINDOW) + 1:
            return IGNORED, [0] * 4, 0
    label, nearest, named, learnt, nearest_teacher = BACKGROUND, None, None, ([0] * 4, 0), None
    for box, number, many in zip(boxes, labels, crowd, strict=True):
        shared, shift = 1, 0
        for axis in (0, 1):
            shared *= max(0, min(window[axis + 2], box[axis + 2]) - max(window[axis], box[axis]))
            # The middles that windows can have, when none may leave the image.
            least = frame[axis] + WINDOW / 2
            most = max(least, frame[axis + 2] - WINDOW / 2)
            centre = min(max((box[axis] + box[axis + 2]) / 2, least), most)
            shift = max(shift, abs(window[axis] + WINDOW / 2 - centre) / WINDOW)
        height, width = box[2] - box[0], box[3] - box[1]
        if many:
            if label == BACKGROUND and 2 * shared >= min(height * width, WINDOW**2):
                label = IGNORED
            continue
        size = max(height, width) / WINDOW
        half_seen = 2 * shared >= height * width  # 4.2
        near_size = matching.sizes[0] / matching.margin <= size <= matching.sizes[1] * matching.margin
        if not (half_seen and near_size):
            continue
        lesson = [(edge - window[n % 2]) / WINDOW for n, edge in enumerate(box)], number + 1
        if nearest_teacher is None or shift < nearest_teacher:
            nearest_teacher, learnt = shift, lesson
        if shift <= matching.shift and matching.sizes[0] <= size <= matching.sizes[1]:
            if nearest is None or shift < nearest:
                nearest, label, named = shift, number + 1, lesson
        elif shift <= matching.shift * matching.margin and label == BACKGROUND:
            label = IGNORED
    return label, *(named or learnt)


@st.composite
def scenes(draw):
    """Whole pixels: no rounding may decide on which side of a threshold an object falls."""
    side = draw(st.sampled_from([36, 60, 96]))
    place, length = st.integers(-30, side), st.integers(1, 48)
    corners = draw(st.lists(st.tuples(place, place, length, length), max_size=5))
    boxes = [(y, x, y + h, x + w) for y, x, h, w in corners]
    labels = draw(st.lists(st.integers(0, 9), min_size=len(boxes), max_size=len(boxes)))
    first, extent = st.integers(-40, side // 2), st.integers(8, 2 * side)
    top, left, height, width = (draw(s) for s in (first, first, extent, extent))
    frame, fine = (top, left, top + height, left + width), draw(st.booleans())
    return boxes, labels, frame, side, fine, MATCHING, [draw(st.booleans()) for _ in boxes]


@settings(max_examples=150, deadline=None)
@given(scenes())
@example(([(30, 30, 50, 48), (60, 4, 84, 20)], [2, 6], (0, 0, 80, 96), 96, True))  # every kind of label
@example(([(34, 34, 62, 62), (46, 46, 56, 56)], [3, 8], (0, 0, 96, 96), 96, True))  # one too small to find, nearer
def test_assign_is_the_loop_over_windows_and_objects(scene):
    for found, wanted in zip(assigned(*scene), expected(*scene), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_origins_are_the_windows_the_network_gives():
    for fine in (True, False):
        origins = window_origins(TINY, 96, fine).numpy()
        assert origins.shape == (geometry.window_count(TINY, 96, fine),) * 2 + (2,)
        np.testing.assert_array_equal(origins[2, 3], [2 * geometry.stride(TINY, fine), 3 * geometry.stride(TINY, fine)])


@pytest.mark.parametrize("left, teaches", [(24, 1), (25, 0), (-8, 1), (-9, 0)])
def test_the_taughtor_learns_from_half_an_object_but_not_from_less(left, teaches):
    box = (4, left, 28, left + 16)  # the window at the origin sees 8 of its 16 columns, or 7
    _, edges, taught = assigned([box], [0], (-99, -99, 199, 199))
    assert taught[0, 0] == teaches
    np.testing.assert_allclose(edges[0, 0], [4 / 32, left / 32, 28 / 32, (left + 16) / 32] if teaches else [0] * 4)


def test_an_object_in_the_images_corner_is_the_outermost_windows():
    box, frame = (0, 0, 16, 16), (0, 0, 96, 96)
    labels, edges, _ = assigned([box], [4], frame)
    assert labels[0, 0] == 5
    np.testing.assert_allclose(edges[0, 0], [0, 0, 0.5, 0.5])
    # Were there more image beyond, a window further out would show it better.
    assert assigned([box], [4], (-40, -40, 96, 96))[0][0, 0] == BACKGROUND
    opposite, _, _ = assigned([(80, 80, 96, 96)], [4], frame)
    assert opposite[-1, -1] == 5 and (opposite == 5).sum() == (labels == 5).sum()


def test_an_image_without_objects_is_background():
    labels, edges, taught = assigned([], [], (0, 0, 96, 96))
    assert (labels == BACKGROUND).all() and not edges.any() and not taught.any()


def test_windows_beyond_the_image_are_ignored_and_teach_nothing():
    labels, edges, taught = assigned([(60, 60, 80, 80)], [1], (12, 0, 84, 96))
    outside = np.zeros(labels.shape, bool)
    outside[:3] = outside[14:] = True  # origins 0, 4, 8 and 56, 60, 64, where 12..52 keep to the rows 12..84
    assert (labels[outside] == IGNORED).all() and not taught[outside].any() and not edges[outside].any()
    assert (labels[~outside] == BACKGROUND).any() and taught[~outside].any()


def test_an_object_of_the_wrong_size_is_background_and_one_nearly_right_is_ignored():
    def at_the_middle(length):
        first = 48 - length / 2
        labels, _, taught = assigned([[first, first, first + length, first + length]], [0], (0, 0, 96, 96))
        return labels[8, 8], taught[8, 8]

    low, high = (size * WINDOW for size in MATCHING.sizes)
    assert at_the_middle(low + 0.1) == at_the_middle(high - 0.1) == (1, 1)
    assert at_the_middle(low - 0.1) == at_the_middle(high + 0.1) == (IGNORED, 1)
    assert at_the_middle(low / MATCHING.margin - 0.1) == at_the_middle(high * MATCHING.margin + 0.1) == (BACKGROUND, 0)
