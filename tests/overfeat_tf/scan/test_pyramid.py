"""Crops against plain slices of the resized image (Table 2), and where their boxes land."""

import numpy as np
import pytest
import tensorflow as tf

from overfeat_tf.network.convnet import build
from overfeat_tf.network.presets import PRESETS
from overfeat_tf.options import InferenceOptions
from overfeat_tf.scan.dense_scan import scan
from overfeat_tf.scan.pyramid import draw_views

TINY = PRESETS["tiny"]
SIDE, WINDOW = TINY.shorter_side, TINY.window


def random_image(height, width):
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [(SIDE, SIDE + 21), (SIDE + 30, SIDE), (SIDE, SIDE)])
def test_ten_views_are_the_corners_and_the_centre_of_the_central_square_and_their_mirror_images(size):
    image = random_image(*size)  # as large as crops want it: not resized
    (views,) = draw_views(TINY, tf.constant(image), InferenceOptions(views="ten"))
    top, left = ((side - SIDE) // 2 for side in size)
    square = image[top : top + SIDE, left : left + SIDE]
    end = SIDE - WINDOW
    places = [(0, 0), (0, end), (end, 0), (end, end), (end // 2, end // 2)]
    crops = [shown[y : y + WINDOW, x : x + WINDOW] for shown in (square, square[:, ::-1]) for y, x in places]
    np.testing.assert_allclose(views.pixels, crops, atol=1e-3)
    assert views.mirrored == (False,) * 5 + (True,) * 5
    # Where each was cut from, in the whole image and in its mirror image.
    for pixels, (y, x), mirrored in zip(views.pixels, views.origins.numpy().astype(int), views.mirrored, strict=True):
        shown = image[:, ::-1] if mirrored else image
        np.testing.assert_allclose(pixels, shown[y : y + WINDOW, x : x + WINDOW], atol=1e-3)


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((74, 111), (37, 56)),  # halved; 55.5 rounds to even
        ((5, 6), (37, 44)),  # enlarged
        ((1, 1), (37, 37)),
        ((30, 1500), (37, 1850)),
        ((2, 4000), (37, 2368)),  # squeezed to 64 to 1
    ],
)
@pytest.mark.parametrize(("flips", "count"), [(False, 1), (True, 2)])
def test_the_centre_crop_is_of_the_shorter_side(size, resized, flips, count):
    (views,) = draw_views(TINY, tf.constant(random_image(*size)), InferenceOptions(views="centre", flips=flips))
    assert tuple(views.size.numpy()) == resized
    assert views.pixels.shape == (count, WINDOW, WINDOW, 3)
    centre = [(side - SIDE) // 2 + (SIDE - WINDOW) // 2 for side in resized]
    np.testing.assert_array_equal(views.origins[0], centre)


@pytest.mark.parametrize("size", [(74, 120), (200, 90)])
def test_crops_boxes_land_in_the_image(size):
    network = build(TINY, 2)
    last = network.regressor.layers[-1]
    last.kernel.assign(tf.zeros_like(last.kernel))
    last.bias.assign([0.25, 0.0, 0.75, 0.5])  # rows 8 to 24, columns 0 to 16 of the window
    scans = scan(network, tf.constant(random_image(*size)), InferenceOptions(views="ten"))
    assert [s.logits.shape for s in scans] == [(1, 1, 2)] * 10
    height, width = (round(side * SIDE / min(size)) for side in size)
    # The last window of the central square, and what the last of its mirror image is in the image: the first, mirrored.
    top, left = (height - SIDE) // 2, (width - SIDE) // 2
    y, x = top + SIDE - WINDOW, left + SIDE - WINDOW
    np.testing.assert_allclose(
        scans[3].boxes[0, 0, 0], [(y + 8) / height, x / width, (y + 24) / height, (x + 16) / width], rtol=1e-5
    )
    np.testing.assert_allclose(
        scans[8].boxes[0, 0, 0],
        [(y + 8) / height, (left + 16) / width, (y + 24) / height, (left + 32) / width],
        rtol=1e-5,
    )


TABLE_5 = [(245, 245), (281, 317), (317, 389), (389, 461), (425, 497), (461, 569)]
WINDOWS = [(3, 3), (6, 9), (9, 15), (15, 21), (18, 24), (21, 30)]


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (300, 300), (40, 900)])
def test_exact_scales_are_table_5s_whatever_the_aspect_and_on_their_side_for_a_tall_image(size):
    accurate, options = PRESETS["accurate"], InferenceOptions(scale_fit="exact", flips=True)
    groups = draw_views(accurate, tf.constant(random_image(*size)), options)
    turned = 1 if size[0] <= size[1] else -1
    assert [views.pixels.shape for views in groups] == [(2, *side[::turned], 3) for side in TABLE_5]
    assert [tuple(views.size.numpy()) for views in groups] == [side[::turned] for side in TABLE_5]  # without padding
    counts = [tuple(accurate.window_count(side) for side in views.size.numpy().tolist()) for views in groups]
    assert counts == [count[::turned] for count in WINDOWS]
    assert sum(rows * columns for rows, columns in counts) == 1575


def test_an_exact_scale_shows_the_whole_image_and_places_boxes_in_it():
    network, image = build(TINY, 2), np.full((60, 120, 3), 9, np.uint8)
    image[:30] = 200
    options = InferenceOptions(scale_fit="exact", scales=(3,))
    (views,) = draw_views(TINY, tf.constant(image), options)
    assert (views.pixels.numpy()[0, :30] > 199).all() and (views.pixels.numpy()[0, 38:] < 10).all()
    (found,) = scan(network, tf.constant(image), options)
    np.testing.assert_allclose(found.windows[0, 0], [0, 0, 32 / 68, 32 / 68], rtol=1e-6)
    np.testing.assert_allclose(found.windows[-1, -1], [36 / 68, 36 / 68, 1, 1], rtol=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_the_shorter_side_holds_a_window(name):
    assert PRESETS[name].window <= PRESETS[name].shorter_side
    if name in ("fast", "accurate"):
        assert PRESETS[name].shorter_side == 256  # 3.1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"views": "twelve"}, "expected views to be one of dense, centre, ten, release; got 'twelve'"),
        ({"scale_fit": "near"}, "expected scale_fit to be one of aspect, exact; got 'near'"),
        ({"localize_by": "luck"}, "expected localize_by to be one of vote, accumulated; got 'luck'"),
        ({"top_k": 0}, "expected top_k to be a whole number, at least 1; got 0"),
        ({"max_windows": 2.5}, "expected max_windows to be a whole number, at least 1; got 2.5"),
        ({"max_detections": -1}, "expected max_detections to be a whole number, at least 1; got -1"),
        ({"min_score": 1.5}, "expected min_score, a softmax score, to be between 0 and 1; got 1.5"),
        ({"min_score": float("nan")}, "between 0 and 1; got nan"),
        ({"merge_threshold": -0.1}, "expected merge_threshold to be at least 0, and finite; got -0.1"),
        ({"merge_threshold": float("inf")}, "at least 0, and finite; got inf"),
    ],
)
def test_options_that_can_not_be_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        InferenceOptions(**given)
