"""Views: one resampling that equals the scan's own, and boxes that stay on what they box."""

import numpy as np
import pytest
import tensorflow as tf

from overfeat_tf.boxes import centre
from training.augment import View, jitter_colour, random_frame, random_mirror, resample

FILL = 118.0
SIDE = 48


def noise(height: int, width: int) -> tf.Tensor:
    return tf.constant(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def floats(*values) -> tf.Tensor:
    return tf.constant(values, tf.float32)


def seed(number: int) -> tf.Tensor:
    return tf.constant([7, number], tf.int32)


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
    whole = tf.raw_ops.ScaleAndTranslate(
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
    np.testing.assert_allclose(view[seen], whole[seen], atol=0.05)
    assert (view[~seen] == FILL).all()


def test_outside_the_image_is_fill_to_the_pixel():
    image = tf.zeros([10, 10, 3], tf.uint8)
    view = resample(image, floats(8, 12, 40, 44), SIDE, FILL).numpy()
    inside = np.zeros((SIDE, SIDE), bool)
    inside[8:40, 12:44] = True
    assert (view[inside] == 0).all() and (view[~inside] == FILL).all()
    nowhere = resample(image, floats(60, 60, 90, 90), SIDE, FILL).numpy()
    assert (nowhere == FILL).all()


# --- random_frame ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stretch", [0.0, 0.3])
def test_the_object_gets_its_length_within_the_stretch_and_lies_near_the_middle(stretch):
    size, box, length, slack = floats(400, 600), floats(150, 250, 230, 310), 30.0, 6.0
    aspects = []
    for number in range(60):
        frame = random_frame(seed(number), size, box, tf.constant(length), SIDE, slack, stretch)
        scale = (frame[2:] - frame[:2]) / size
        sides = ((box[2:] - box[:2]) * scale).numpy()
        aspects.append(scale[0] / scale[1])
        assert length / np.sqrt(1 + stretch) - 1e-3 <= sides[0] <= length * np.sqrt(1 + stretch) + 1e-3
        middle = centre(box) * scale + frame[:2]  # far from the image's edges: nothing else moves it
        assert np.abs(middle - SIDE / 2).max() <= slack + 1e-3
    assert (
        np.ptp(aspects) >= stretch and max(aspects) <= 1 + stretch + 1e-5 and min(aspects) >= 1 / (1 + stretch) - 1e-5
    )


@pytest.mark.parametrize("size", [(90.0, 70.0), (30.0, 300.0), (20.0, 25.0)])
def test_the_view_stays_inside_the_image_or_the_image_inside_the_view(size):
    for number in range(60):
        corner = np.random.default_rng(number).uniform(0, np.array(size) - 5)
        box = floats(*corner, *(corner + 5))
        length = 5.0 * (0.7 + number / 50)
        frame = random_frame(seed(number), floats(*size), box, tf.constant(length), SIDE, 30.0, 0.2).numpy()
        for first, last in zip(frame[:2], frame[2:], strict=True):
            assert last > first
            covers, fits = first <= 1e-3 and last >= SIDE - 1e-3, first >= -1e-3 and last <= SIDE + 1e-3
            assert covers if last - first > SIDE else fits


# --- Mirror and colour -----------------------------------------------------------------------------------------------


def bright(image_size, box) -> tf.Tensor:
    """Draw a white rectangle, whole pixels, on black."""
    image = np.zeros((*image_size, 3), np.uint8)
    top, left, bottom, right = box
    image[top:bottom, left:right] = 255
    return tf.constant(image)


@pytest.mark.parametrize("number", range(8))
def test_the_box_is_where_the_pixels_are_after_all_of_it(number):
    size, box = (200, 260), (60, 140, 150, 190)
    frame = random_frame(seed(number), floats(*size), floats(*box), tf.constant(36.0), 96, 20.0, 0.3)
    scale = (frame[2:] - frame[:2]) / floats(*size)
    placed = floats(*box) * tf.concat([scale, scale], 0) + tf.concat([frame[:2], frame[:2]], 0)
    view = View(resample(bright(size, box), frame, 96, 0.0), placed[None], frame)
    drawn = random_mirror(seed(number), view)
    light = drawn.pixels[..., 0].numpy() > 127
    rows, columns = np.flatnonzero(light.any(axis=1)), np.flatnonzero(light.any(axis=0))
    seen = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
    np.testing.assert_allclose(drawn.boxes[0], seen, atol=0.75)


def test_mirroring_flips_pixels_boxes_and_frame_together_half_of_the_time():
    pixels = tf.cast(noise(SIDE, SIDE), tf.float32)
    view = View(pixels, floats(1, 2, 10, 22)[None], floats(-5, -3, 60, 70))
    flipped = View(pixels[:, ::-1], floats(1, 26, 10, 46)[None], floats(-5, -22, 60, 51))
    times = 0
    for number in range(200):
        got = random_mirror(seed(number), view)
        mirrored = bool(tf.reduce_all(got.pixels == flipped.pixels))
        times += mirrored
        for part, wanted in zip(got, flipped if mirrored else view, strict=True):
            np.testing.assert_array_equal(part, wanted)
    assert 70 < times < 130


def test_colour_moves_within_its_strength_and_not_at_all_without():
    pixels = tf.fill([4, 4, 3], 100.0)
    np.testing.assert_allclose(jitter_colour(seed(0), pixels, 0.0), pixels, rtol=1e-6)
    changed = np.stack([jitter_colour(seed(number), pixels, 0.2) for number in range(50)])
    assert changed.min() >= 100 * 0.8**2 - 1e-3 and changed.max() <= 100 * 1.2**2 + 1e-3
    assert np.ptp(changed[:, 0, 0, 0]) > 10 and not np.allclose(changed[..., 0], changed[..., 1])
    extremes = jitter_colour(seed(1), tf.cast(noise(8, 8), tf.float32), 0.9)
    assert extremes.numpy().min() >= 0 and extremes.numpy().max() <= 255


# --- Where it runs ---------------------------------------------------------------------------------------------------


def draw(number: tf.Tensor) -> View:
    """Make a view as the pipeline does."""
    seeds = tf.unstack(tf.random.split(tf.stack([3, number]), 4))
    size, box = floats(80, 110), floats(20, 30, 40, 70)
    frame = random_frame(seeds[0], size, box, tf.constant(24.0), SIDE, 8.0, 0.2)
    pixels = jitter_colour(seeds[1], resample(noise(80, 110), frame, SIDE, FILL), 0.2)
    return random_mirror(seeds[2], View(pixels, box[None], frame))


def test_a_view_depends_on_its_seed_alone_eagerly_and_inside_tf_data():
    streamed = list(tf.data.Dataset.range(4, output_type=tf.int32).map(draw, num_parallel_calls=2))
    eager = [draw(tf.constant(number)) for number in reversed(range(4))][::-1]
    for a, b in zip(streamed, eager, strict=True):
        for part, same in zip(a, b, strict=True):
            np.testing.assert_allclose(part, same, atol=1e-3)
    assert len({view.frame.numpy().tobytes() for view in eager}) == 4
