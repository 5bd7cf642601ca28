"""Views: cut out of the canvases that the scan shows, around windows that it has, with boxes where the pixels are."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from overfeat_tf.network.presets import PRESETS
from overfeat_tf.scan.pyramid import draw_scale
from training.views.augmentation import Picture, ViewOptions, random_picture
from training.views.pyramid import Pyramid
from training.views.targets import Matching, window_origins

TINY, MATCHING = PRESETS["tiny"], Matching()
STILL = ViewOptions(stretch=0.0, zoom=1.0, scale_jitter=1.0, colour=0.0, mirror=False)


def chances(count: int, number: int) -> tf.Tensor:
    return tf.random.stateless_uniform([count], [3, number])


def noise(height: int, width: int) -> tf.Tensor:
    return tf.constant(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def pyramid(image: tf.Tensor, boxes=(), preset=TINY) -> Pyramid:
    boxes = tf.constant(np.reshape(boxes, [-1, 4]), tf.float32)
    count, size = len(boxes), tf.cast(tf.shape(image)[:2], tf.float32)
    picture = Picture(image, size, boxes, tf.range(count), tf.zeros([count], tf.bool))
    return Pyramid(preset, MATCHING, preset.scales, picture)


@pytest.mark.parametrize("size", [(120, 90), (60, 240), (33, 32)])
def test_a_view_is_cut_out_of_the_canvas_that_the_scan_shows(size):
    image, side = noise(*size), 44
    shown = pyramid(image)
    for number, scale in enumerate(TINY.scales):
        canvas, resized = draw_scale(TINY, scale, image)
        np.testing.assert_array_equal(shown.canvases[number], canvas.shape[:2])
        np.testing.assert_array_equal(shown.sizes[number], resized)
        for draw in range(3):
            first = shown.view_anywhere(chances(2, draw), tf.constant(number), side, fine=True)
            view = shown.draw(chances(5, 0), tf.constant(number), first, side, colour=0.0)
            top, left = first.numpy()
            there = canvas[top : top + side, left : left + side].numpy()
            np.testing.assert_allclose(view[: there.shape[0], : there.shape[1]], there, atol=0.06)
            assert top % TINY.fine_stride == left % TINY.fine_stride == 0


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(sorted(PRESETS)),
    st.tuples(st.floats(0.02, 1.0), st.floats(0.02, 1.0)),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.booleans(),
    st.integers(0, 999),
)
def test_every_object_gets_a_view_with_a_positive_window_of_the_scan(name, sides, place, fine, number):
    preset = PRESETS[name]
    corner = (1 - np.array(sides)) * place
    shown = pyramid(tf.zeros([300, 400, 3], tf.uint8), [*corner, *(corner + sides)], preset)
    subject, side = tf.constant(0), preset.smallest_input + preset.coarse_stride
    scale = shown.home_of(chances(1, number)[0], subject)
    window = shown.positive_window(chances(2, number + 1), scale, subject)
    longer = max(shown.boxes[scale, 0, 2:] - shown.boxes[scale, 0, :2]) / preset.window
    label = shown.targets(scale, window, tf.zeros([1, 1, 2])).labels[0, 0]
    assert label == (1 if longer >= MATCHING.smallest else -1)
    first = shown.view_around(chances(2, number + 2), scale, window, side, fine)
    apart = (window - first).numpy()
    step, count = preset.stride(fine), preset.window_count(side, fine)
    assert (first.numpy() >= 0).all() and (first.numpy() % preset.fine_stride == 0).all()
    assert (apart % step == 0).all() and (apart // step >= 0).all() and (apart // step < count).all()
    labels = shown.targets(scale, first, window_origins(preset, side, fine)).labels
    assert labels[tuple(apart // step)] == label


def test_any_window_of_the_scan_is_as_likely_as_any_other():
    shown = pyramid(noise(120, 90))
    windows = [int(((canvas - TINY.window) // TINY.fine_stride + 1).prod()) for canvas in shown.canvases.numpy()]
    draws = [int(shown.scale_of_any_window(tf.constant((n + 0.5) / 1000))) for n in range(1000)]
    np.testing.assert_allclose(np.bincount(draws) / 1000, np.array(windows) / sum(windows), atol=2e-3)


def test_views_anywhere_reach_every_window_of_a_canvas():
    shown, side, scale = pyramid(noise(90, 90)), 44, tf.constant(2)
    for fine in (True, False):
        grid = window_origins(TINY, side, fine).numpy()
        firsts = [shown.view_anywhere(chances(2, draw), scale, side, fine).numpy() for draw in range(500)]
        seen = {tuple(origin) for first in firsts for origin in (grid + first).reshape(-1, 2)}
        last = int(shown.canvases[scale][0]) - TINY.window
        wanted = range(0, last + 1, TINY.fine_stride)
        assert {(float(y), float(x)) for y in wanted for x in wanted} <= seen


def test_a_random_picture_keeps_its_subject_and_its_boxes_stay_on_what_they_box():
    image = np.zeros((120, 200, 3), np.uint8)
    image[30:60, 80:120] = (255, 0, 0)  # the subject
    image[90:110, 5:25] = (0, 255, 0)
    boxes = np.array([[90, 5, 110, 25], [30, 80, 60, 120]]) / [120, 200, 120, 200]
    record = {
        "boxes": tf.constant(boxes, tf.float32),
        "labels": tf.constant([7, 4]),
        "crowd": tf.constant([False, False]),
    }
    options = ViewOptions(stretch=0.2, zoom=2.5, mirror=True)
    sizes, crowds, lefts = set(), [], set()
    for number in range(80):
        picture, index = random_picture(chances(6, number), tf.constant(image), record, tf.constant(1), options)
        pixels, labels = picture.pixels.numpy(), picture.labels.numpy().tolist()
        assert labels[index] == 4 and not picture.crowd[index]
        for box, label, crowd in zip(picture.boxes.numpy(), labels, picture.crowd.numpy(), strict=True):
            shown = pixels[..., 0 if label == 4 else 1] > 0
            rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
            edges = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
            np.testing.assert_allclose(box * np.tile(pixels.shape[:2], 2), edges, atol=0.01)
            left = shown.sum() / (1200 if label == 4 else 400)
            assert crowd == (left < 0.5) or abs(left - 0.5) < 1e-6
            crowds.append(bool(crowd))
        assert (pixels[..., 0] > 0).sum() == 1200
        sizes.add(pixels.shape)
        lefts.add(round(float(picture.boxes[index, 1]), 2))
    assert len(sizes) > 20 and len(lefts) > 20 and any(crowds) and not all(crowds)


def test_nothing_changes_where_nothing_may():
    image = noise(40, 50)
    record = {"boxes": tf.constant([[0.1, 0.2, 0.5, 0.6]]), "labels": tf.constant([3]), "crowd": tf.constant([False])}
    picture, index = random_picture(chances(6, 0), image, record, tf.constant(-1), STILL)
    np.testing.assert_array_equal(picture.pixels, image)
    np.testing.assert_allclose(picture.boxes, record["boxes"])
    assert picture.size.numpy().tolist() == [40, 50] and index == -1


@pytest.mark.parametrize("values", [{"zoom": 0.9}, {"scale_jitter": 0.5}, {"stretch": -1.0}, {"object_share": 2.0}])
def test_view_options_refuse_what_they_cannot_do(values):
    with pytest.raises(ValueError, match="expected views"):
        ViewOptions(**values)
