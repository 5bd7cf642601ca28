"""One resampling that equals the scan's own, and changes of colour."""

import numpy as np
import pytest
import tensorflow as tf

from training.views.pyramid import jitter_colour, resample

FILL = 118.0
SIDE = 48


def noise(height: int, width: int) -> tf.Tensor:
    return tf.constant(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def floats(*values) -> tf.Tensor:
    return tf.constant(values, tf.float32)


def chances(number: int) -> tf.Tensor:
    return tf.random.stateless_uniform([5], [7, number])


# --- resample --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(48, 48), (20, 31), (150, 97), (48, 200), (1, 1)])
def test_a_view_of_the_whole_image_is_tensorflows_antialiased_resize(size):
    image = noise(*size)
    view = resample(image, floats(0, 0, SIDE, SIDE), SIDE, FILL)
    resized = tf.image.resize(tf.cast(image, tf.float32), (SIDE, SIDE), antialias=True)
    np.testing.assert_allclose(view, resized, atol=0.02)


@pytest.mark.parametrize(
    "frame",
    [(-300, -200, 400, 500), (-30, -20, 30, 40), (-10.3, 5.2, 60.9, 47.7), (20, -700, 60, 300), (-1000, -40, 49, 60)],
)
@pytest.mark.parametrize("size", [(120, 90), (17, 300)])
def test_cropping_first_changes_nothing(size, frame):
    image, edges = noise(*size), floats(*frame)
    scale = (edges[2:] - edges[:2]) / floats(*size)
    full = tf.raw_ops.ScaleAndTranslate(
        images=tf.cast(image, tf.float32)[None],
        size=[SIDE, SIDE],
        scale=scale,
        translation=edges[:2],
        kernel_type="triangle",
        antialias=True,
    )[0].numpy()
    middles = np.arange(SIDE) + 0.5
    seen = ((middles > frame[0]) & (middles < frame[2]))[:, None] & ((middles > frame[1]) & (middles < frame[3]))
    view = resample(image, edges, SIDE, FILL).numpy()
    assert seen.sum() > 0
    np.testing.assert_allclose(view[seen], full[seen], atol=0.05)
    assert (view[~seen] == FILL).all()


def test_outside_the_image_is_fill_to_the_pixel():
    image = tf.zeros([10, 10, 3], tf.uint8)
    view = resample(image, floats(8, 12, 40, 44), SIDE, FILL).numpy()
    inside = np.zeros((SIDE, SIDE), bool)
    inside[8:40, 12:44] = True
    assert (view[inside] == 0).all() and (view[~inside] == FILL).all()
    nowhere = resample(image, floats(60, 60, 90, 90), SIDE, FILL).numpy()
    assert (nowhere == FILL).all()


# --- Colour -----------------------------------------------------------------------------------------------------------


def test_colour_moves_within_its_strength_and_not_at_all_without():
    pixels = tf.fill([4, 4, 3], 100.0)
    np.testing.assert_allclose(jitter_colour(chances(0), pixels, 0.0), pixels, rtol=1e-6)
    changed = np.stack([jitter_colour(chances(number), pixels, 0.2) for number in range(50)])
    assert changed.min() >= 100 * 0.8**2 - 1e-3 and changed.max() <= 100 * 1.2**2 + 1e-3
    assert np.ptp(changed[:, 0, 0, 0]) > 10 and not np.allclose(changed[..., 0], changed[..., 1])
    extremes = jitter_colour(chances(1), tf.cast(noise(8, 8), tf.float32), 0.9)
    assert extremes.numpy().min() >= 0 and extremes.numpy().max() <= 255
