"""Plain crops (3.1): where they are from, at what size, and the same again under a seed."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from small_source import SmallSource, few_digits

from overfeat_tf.network.presets import PRESETS
from training.sources.record import Record
from training.views.augmentation import ViewOptions
from training.views.drawing import Drawing, plain_crops, random_crops, shrink
from training.views.pipeline import training_batches
from training.views.targets import Matching

TINY = PRESETS["tiny"]
VIEWS = ViewOptions(per_image=5, plain=True)


def batches(source, preset, views=VIEWS, batch=10, seed=3):
    shown = plain_crops(Drawing(preset, preset.scales, Matching(), views))
    return training_batches(source, "train", shown, batch, seed)


@pytest.mark.parametrize("height, width", [(375, 500), (1200, 700), (100, 90)])
def test_five_crops_of_the_papers_size_and_their_mirror_images(height, width):
    image = np.zeros((height, width, 3), np.uint8)  # a pixel says where it is from
    image[..., 0] = np.linspace(0, 255, height)[:, None]
    image[..., 1] = np.linspace(0, 255, width)
    chances = tf.random.stateless_uniform([5, 3], [3, 2])
    found = random_crops(chances, shrink(tf.constant(image), 256), 231, mirror=True)
    assert {(view.shape, view.dtype) for view in found} == {((231, 231, 3), tf.uint8)}
    pixels = np.float32(found)
    # 231 of the 256 pixels that the shorter side has, and of as many in proportion of the other.
    for line, side in ((pixels[:, :, 115, 0], height), (pixels[:, 115, :, 1], width)):
        np.testing.assert_allclose(np.ptp(line, axis=1), 255 * 231 / (256 * side / min(height, width)), atol=4)
    np.testing.assert_array_equal(pixels[5:], pixels[:5, :, ::-1])
    assert len({view.tobytes() for view in pixels}) == 10
    as_it_is = pixels[:, 115, -1, 1] > pixels[:, 115, 0, 1]
    assert as_it_is.tolist() == [bool(chances[0, 2] < 0.5)] * 5 + [bool(chances[0, 2] >= 0.5)] * 5


def test_shrinking_far_averages():
    noise = np.random.default_rng(0).integers(0, 256, (800, 1000, 3), np.uint8)
    small = shrink(tf.constant(noise), 200).numpy()
    assert small.shape == (200, 250, 3) and small.dtype == np.uint8
    np.testing.assert_allclose(small, noise.reshape(200, 4, 250, 4, 3).mean(axis=(1, 3)), atol=1)


@pytest.mark.parametrize("upright", [False, True])
def test_of_a_strip_the_middle_is_shown_in_bounded_memory(upright):
    strip = np.random.default_rng(0).integers(0, 256, (2, 3000, 3), np.uint8)
    axes = (1, 0, 2) if upright else (0, 1, 2)
    shown, middle = (shrink(tf.constant(each.transpose(axes)), 256) for each in (strip, strip[:, 1480:1520]))
    assert sorted(shown.shape) == [3, 256, 20 * 256]
    np.testing.assert_array_equal(shown, middle)


def test_the_stream_is_the_same_again_under_its_seed():
    digits, views = few_digits(6, 1), replace(VIEWS, mirror=False, per_image=3)
    once, again = batches(digits, TINY, views), batches(digits, TINY, views)
    assert once.element_spec == (tf.TensorSpec([10, 32, 32, 3], tf.uint8), tf.TensorSpec([10], tf.int32))
    for (pixels, labels), (pixels_again, labels_again) in zip(once.take(2), again.take(2), strict=True):
        np.testing.assert_array_equal(pixels, pixels_again)
        np.testing.assert_array_equal(labels, labels_again)


def test_a_crowd_gives_its_image_no_class():
    one, other = few_digits(2, 1).records_of["train"]
    both = [
        Record.of_objects(one.image_bytes, "both", [[0, 0, 1, 1]] * 3, [4, 7, 4], crowd=[True, False, True]),
        Record.of_objects(other.image_bytes, "crowd alone", [[0, 0, 1, 1]], [5], crowd=[True]),
    ]
    seen = [labels.numpy() for _, labels in batches(SmallSource({"train": both}), TINY).take(4)]
    np.testing.assert_array_equal(seen, np.full((4, 10), 7))
