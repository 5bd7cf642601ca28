"""Crops against plain slices of the resized image (Table 2), and where their boxes land."""

import numpy as np
import pytest
import tensorflow as tf

from overfeat_tf.network import build
from overfeat_tf.options import InferenceOptions
from overfeat_tf.presets import PRESETS
from overfeat_tf.scan import scan
from overfeat_tf.views import draw_views

TINY = PRESETS["tiny"]
SIDE, WINDOW = TINY.shorter_side, TINY.window


def random_image(height, width):
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [(SIDE, SIDE + 20), (SIDE + 31, SIDE), (SIDE, SIDE)])
def test_ten_views_are_the_corners_the_centre_and_their_mirror_images(size):
    image = random_image(*size)  # as large as crops want it: not resized
    (views,) = draw_views(TINY, tf.constant(image), InferenceOptions(views="ten"))
    down, across = (side - WINDOW for side in size)
    places = [(0, 0), (0, across), (down, 0), (down, across), (down // 2, across // 2)]
    crops = [shown[y : y + WINDOW, x : x + WINDOW] for shown in (image, image[:, ::-1]) for y, x in places]
    np.testing.assert_allclose(views.pixels, crops, atol=1e-3)
    # The mirror image of a crop is one of the crops of the mirror image.
    np.testing.assert_allclose(views.pixels[5], crops[1][:, ::-1], atol=1e-3)
    np.testing.assert_array_equal(views.origins, places * 2)
    assert views.mirrored == (False,) * 5 + (True,) * 5


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
    np.testing.assert_array_equal(views.origins[0], [(side - WINDOW) // 2 for side in resized])


@pytest.mark.parametrize("size", [(74, 120), (200, 90)])
def test_crops_boxes_land_in_the_image(size):
    network = build(TINY, 2)
    last = network.regressor.layers[-1]
    last.kernel.assign(tf.zeros_like(last.kernel))
    last.bias.assign([0.25, 0.0, 0.75, 0.5])  # rows 8 to 24, columns 0 to 16 of the window
    scans = scan(network, tf.constant(random_image(*size)), InferenceOptions(views="ten"))
    assert [s.logits.shape for s in scans] == [(1, 1, 2)] * 10
    height, width = (round(side * SIDE / min(size)) for side in size)
    # The last window of the image, and what the last of the mirror image is in the image: its first, mirrored.
    y, x = height - WINDOW, width - WINDOW
    np.testing.assert_allclose(
        scans[3].boxes[0, 0, 0], [(y + 8) / height, x / width, (y + 24) / height, (x + 16) / width], rtol=1e-5
    )
    np.testing.assert_allclose(
        scans[8].boxes[0, 0, 0], [(y + 8) / height, 16 / width, (y + 24) / height, 32 / width], rtol=1e-5
    )


@pytest.mark.parametrize("name", PRESETS)
def test_the_shorter_side_holds_a_window(name):
    assert PRESETS[name].window <= PRESETS[name].shorter_side
    if name in ("fast", "accurate"):
        assert PRESETS[name].shorter_side == 256  # 3.1


def test_unknown_views_are_refused():
    with pytest.raises(ValueError, match="expected views to be one of dense, centre, ten; got 'twelve'"):
        InferenceOptions(views="twelve")
