"""Which windows learn which object: `assign` against loops in plain Python, and its promises over all sizes."""

from itertools import product

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from overfeat_tf.network.presets import PRESETS
from overfeat_tf.scan.pyramid import fit_scale
from training.views.targets import BACKGROUND, IGNORED, Matching, assign, home_scales, window_origins

TINY = PRESETS["tiny"]
WINDOW, GRID = TINY.window, TINY.fine_stride
MATCHING = Matching()


def assigned(boxes, labels, canvas, home=None, crowd=None, matching=MATCHING, preset=TINY, fine=True, first=(0, 0)):
    """Run `assign` over all windows of a square as long as the canvas; labels, edges and box classes in numpy."""
    boxes = tf.constant(np.asarray(boxes, np.float32).reshape(-1, 4))
    flags = (home or [True] * len(labels), crowd or [False] * len(labels))
    home, crowd = (tf.constant(each, tf.bool) for each in flags)
    origins = window_origins(preset, max(canvas), fine) + tf.constant(first, tf.float32)
    objects = (boxes, tf.constant(np.asarray(labels, np.int32)), crowd, home)
    return [part.numpy() for part in _assign(preset, matching, *objects, tf.constant(canvas), origins)]


_assign = tf.function(assign, autograph=False, reduce_retracing=True)


def expected(boxes, labels, canvas, home, crowd, matching, fine):
    """Answer as `assigned`, window by window and object by object."""
    count, stride = TINY.window_count(max(canvas), fine), TINY.stride(fine)
    wanted = np.full((count, count), BACKGROUND), np.zeros((count, count, 4)), np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            window = [i * stride, j * stride, i * stride + WINDOW, j * stride + WINDOW]
            if window[2] > canvas[0] or window[3] > canvas[1]:
                wanted[0][i, j] = IGNORED
                continue
            label, edges, box_class = _answer(window, boxes, labels, canvas, home, crowd, matching)
            wanted[0][i, j], wanted[1][i, j], wanted[2][i, j] = label, edges, box_class
    return wanted


def _answer(window, boxes, labels, canvas, home, crowd, matching):
    label, positives, placed = BACKGROUND, [], []
    for box, number, at_home, many in zip(boxes, labels, home, crowd, strict=True):
        shared, most, shift, area = 1, 1, 0, 1
        for axis in (0, 1):
            side = box[axis + 2] - box[axis]
            shared *= max(0, min(window[axis + 2], box[axis + 2]) - max(window[axis], box[axis]))
            most *= min(side, WINDOW)
            area *= side
            centre = min(max((box[axis] + box[axis + 2]) / 2, WINDOW / 2), canvas[axis] - WINDOW / 2)
            shift = max(shift, abs(window[axis] + WINDOW / 2 - centre))
        if many:
            if 2 * shared >= min(area, WINDOW**2) and label == BACKGROUND:
                label = IGNORED
            continue
        longer = max(box[2] - box[0], box[3] - box[1]) / WINDOW
        enough = shared >= matching.visible * (most if at_home else area)
        lesson = [(edge - window[n % 2]) / WINDOW for n, edge in enumerate(box)], number + 1
        if at_home and enough and longer >= matching.smallest and shift <= max(matching.shift * WINDOW, GRID / 2):
            positives.append((shift, lesson))
        elif (
            enough
            and (at_home or longer >= matching.sizes[0] / matching.margin)
            and shift <= max(longer * WINDOW / 2, matching.shift * WINDOW, GRID / 2)
            and label == BACKGROUND
        ):
            label = IGNORED
        if shared >= matching.visible * area:
            placed.append((not at_home, shift, lesson))
    if positives:
        _, lesson = min(positives, key=lambda pair: pair[0])
        return lesson[1], *lesson
    lesson = min(placed, key=lambda pair: pair[:2])[2] if placed else ([0] * 4, 0)
    return label, *lesson


@st.composite
def scenes(draw):
    """Whole pixels: no rounding may decide on which side of a threshold an object falls."""
    canvas = draw(st.sampled_from([(36, 36), (36, 60), (92, 60), (92, 92)]))
    length = st.integers(1, 92)
    sides = draw(st.lists(st.tuples(length, length), max_size=4))
    boxes = []
    for height, width in sides:
        height, width = min(height, canvas[0]), min(width, canvas[1])
        top, left = draw(st.integers(0, canvas[0] - height)), draw(st.integers(0, canvas[1] - width))
        boxes.append((top, left, top + height, left + width))
    flags = [[draw(st.booleans()) for _ in boxes] for _ in range(2)]
    labels = [draw(st.integers(0, 9)) for _ in boxes]
    return boxes, labels, canvas, *flags, draw(st.booleans())


@settings(max_examples=150, deadline=None)
@given(scenes())
def test_assign_is_the_loop_over_windows_and_objects(scene):
    boxes, labels, canvas, home, crowd, fine = scene
    found = assigned(boxes, labels, canvas, home, crowd, fine=fine)
    for ours, wanted in zip(found, expected(boxes, labels, canvas, home, crowd, MATCHING, fine), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-6)


def test_origins_are_the_windows_the_network_gives():
    for fine in (True, False):
        origins = window_origins(TINY, 96, fine).numpy()
        assert origins.shape == (TINY.window_count(96, fine),) * 2 + (2,)
        np.testing.assert_array_equal(origins[2, 3], [2 * TINY.stride(fine), 3 * TINY.stride(fine)])


@pytest.mark.parametrize("name", PRESETS)
def test_every_object_has_a_positive_window_and_no_window_that_shows_it_well_is_background(name):
    preset = PRESETS[name]

    label, single = tf.constant([0]), tf.constant([False])
    for size in ((375, 500), (900, 300)):
        fitted = [[part.numpy() for part in fit_scale(preset, scale, tf.constant(size))] for scale in preset.scales]
        grids = [window_origins(preset, max(canvas), True) for _, canvas in fitted]
        for share, aspect, place in product((0.1, 0.3, 0.6, 0.8, 1.0), (1.0, 3.0, 1 / 3), ((0.5, 0.5), (0.0, 0.3))):
            longer = share * max(size)
            sides = np.minimum([longer * min(1, aspect), longer * min(1, 1 / aspect)], size) / np.array(size)
            corner = (1 - sides) * place
            extents = np.array([np.tile(resized, 2) for resized, _ in fitted], np.float32)
            boxes = np.concatenate([corner, corner + sides]).astype(np.float32) * extents[:, None]  # [K, 1, 4]
            home = home_scales(preset, MATCHING, tf.constant(boxes)).numpy()
            positives = 0
            for box, at_home, (_, canvas), grid in zip(boxes, home, fitted, grids, strict=True):
                labels, _, box_classes = (
                    part.numpy() for part in _assign(preset, MATCHING, box, label, single, at_home, canvas, grid)
                )
                seen = _seen(preset, grid.numpy(), box[0])
                shown = max(box[0, 2:] - box[0, :2]) >= MATCHING.sizes[0] * preset.window or at_home[0]
                apart = np.abs(grid.numpy() + preset.window / 2 - (box[0, :2] + box[0, 2:]) / 2).max(axis=-1)
                well = shown & (seen >= 0.5) & (apart <= max(box[0, 2:] - box[0, :2]) / 2)
                assert not (well & (labels == BACKGROUND)).any(), (size, share, aspect, place)
                assert (box_classes[(seen > 0.5 + 1e-4) & (labels != IGNORED)] == 1).all()
                positives += (labels == 1).sum()
            assert positives, (size, share, aspect, place)


def _seen(preset, origins, box):
    """Return the share of a box that each window sees."""
    sides = np.minimum(origins + preset.window, box[2:]) - np.maximum(origins, box[:2])
    return np.maximum(sides, 0).prod(axis=-1) / (box[2:] - box[:2]).prod()


def test_an_object_belongs_to_the_scales_that_show_it_at_a_size_to_be_found_else_to_the_nearest():
    def homes(*longer):
        boxes = tf.constant([[[0, 0, WINDOW * side, 1]] for side in longer], tf.float32)
        return home_scales(TINY, MATCHING, boxes).numpy()[:, 0].tolist()

    assert homes(0.3, 0.45, 0.63, 0.88) == [False, True, True, False]
    assert homes(1.3, 1.8, 2.5) == [True, False, False]
    assert homes(0.1, 0.14, 0.2) == [False, False, True]
    assert homes(0.35, 0.95) == [False, True]  # 0.83 of the least, 1.13 times the greatest


def test_the_regressor_learns_from_half_an_object_but_not_from_less():
    for left, learns in ((24, 1), (25, 0)):
        box = (4, left, 28, left + 16)  # the window at the origin sees 8 of its 16 columns, or 7
        _, edges, box_classes = assigned([box], [0], (60, 60), home=[False])
        assert box_classes[0, 0] == learns
        np.testing.assert_allclose(edges[0, 0], [4 / 32, left / 32, 28 / 32, (left + 16) / 32] if learns else [0] * 4)


def test_the_regressor_learns_objects_of_all_sizes_unless_told_otherwise():
    boxes, canvas = [(20, 20, 22, 22)], (60, 60)
    assert (assigned(boxes, [0], canvas, home=[False])[2] == 1).any()
    limited = Matching(box_sizes=(0.3, 0.9))
    assert not assigned(boxes, [0], canvas, home=[False], matching=limited)[2].any()


def test_an_object_in_the_corner_is_the_outermost_windows():
    labels, edges, _ = assigned([(0, 0, 16, 16)], [4], (92, 92))
    assert labels[0, 0] == 5
    np.testing.assert_allclose(edges[0, 0], [0, 0, 0.5, 0.5])
    opposite, _, _ = assigned([(76, 76, 92, 92)], [4], (92, 92))
    assert opposite[-1, -1] == 5 and (opposite == 5).sum() == (labels == 5).sum()


def test_windows_beyond_the_canvas_are_ignored_and_learn_nothing():
    labels, edges, box_classes = assigned([(40, 40, 60, 60)], [1], (60, 92), first=(4, -8))
    outside = np.ones(labels.shape, bool)
    outside[:7, 2:] = False  # origins 4 to 28, and from 0
    assert (labels[outside] == IGNORED).all() and not box_classes[outside].any() and not edges[outside].any()
    assert (labels[~outside] == BACKGROUND).any() and box_classes[~outside].any()


def test_what_is_too_small_to_be_seen_is_ignored_where_it_belongs():
    labels, _, _ = assigned([(40, 40, 42, 42)], [3], (92, 92))
    assert set(np.unique(labels)) == {IGNORED, BACKGROUND}
    assert assigned([], [], (92, 92))[0].max() == BACKGROUND


def test_matching_refuses_what_it_cannot_do():
    for values in ({"sizes": (0.8, 0.4)}, {"margin": 0.5}, {"smallest": 0.6}, {"box_sizes": (1.0, 0.2)}):
        with pytest.raises(ValueError, match="expected matching"):
            Matching(**values)
