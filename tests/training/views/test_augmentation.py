"""Mosaics, rotations and erased rectangles: boxes stay on what they box, whatever is drawn."""

import numpy as np
import pytest
import tensorflow as tf
from small_source import coloured_rectangles, hue, picture

from overfeat_tf.images.decode import decode_image
from training.sources.record import Record
from training.views.augmentation import CUT, PARTNERS, Scene, ViewOptions, erase, mosaic, random_picture, rotate
from training.views.reading import Place, RecordStream

FILL = 117.0


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.uniform(0, 0.7, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(0.05, 0.3, (count, 2))], axis=1).astype(np.float32)


@pytest.mark.parametrize("number", range(20))
def test_a_turned_box_holds_the_turned_corners_of_the_one_before_and_no_more(number):
    rng = np.random.default_rng(number)
    height, width = rng.integers(20, 200, 2)
    angle, boxes = float(rng.uniform(-np.pi, np.pi)), random_boxes(rng, 5)
    pixels, turned = rotate(tf.constant(angle), tf.zeros([height, width, 3], tf.uint8), tf.constant(boxes), FILL)
    new = np.array(pixels.shape[:2])
    assert (turned.numpy() > -1e-3).all() and (turned.numpy() < 1 + 1e-3).all()  # nothing is lost
    for box, found in zip(boxes * np.tile([height, width], 2), turned.numpy() * np.tile(new, 2), strict=True):
        corners = [complex(x - width / 2, y - height / 2) for y in box[::2] for x in box[1::2]]
        moved = [corner * np.exp(-1j * angle) for corner in corners]  # y points down: anticlockwise is negative
        ys, xs = ([getattr(c, part) + side / 2 for c in moved] for part, side in (("imag", new[0]), ("real", new[1])))
        np.testing.assert_allclose(found, [min(ys), min(xs), max(ys), max(xs)], atol=0.02)


@pytest.mark.parametrize("angle", [0.0, np.pi / 2, -np.pi / 2, np.pi, 0.4])
def test_turned_pixels_go_where_their_boxes_do(angle):
    box = np.array([30, 20, 70, 120])
    image = tf.constant(np.array(decode_image(picture(100, 160, [box]))[0]))
    pixels, turned = rotate(
        tf.constant(angle, tf.float32), image, tf.constant([box / np.tile([100, 160], 2)], tf.float32), 0.0
    )
    lit = np.argwhere(pixels.numpy()[..., 0] > 127)
    found = np.concatenate([lit.min(axis=0), lit.max(axis=0) + 1])
    np.testing.assert_allclose(turned.numpy()[0] * np.tile(pixels.shape[:2], 2), found, atol=1.5)
    if angle == 0.0:
        np.testing.assert_array_equal(pixels, image)
    if angle == np.pi / 2:
        np.testing.assert_allclose(pixels.numpy().astype(int), np.rot90(image).astype(int), atol=1)


@pytest.fixture(scope="module")
def records() -> list[dict]:
    """Records with partners, of rectangles whose colour is their class, and of nothing."""
    return list(
        RecordStream(coloured_rectangles(), "train", 0, partners=PARTNERS).dataset().take(9).as_numpy_iterator()
    )


@pytest.mark.parametrize("position", [0.0, 0.3, 0.6, 0.99, 1.0])
def test_each_object_of_a_mosaic_is_in_its_box_with_its_own_first(records, position):
    for record in records[:4]:
        image = decode_image(record["image_bytes"])[0]
        scene = Scene(image, *(tf.constant(record[key]) for key in ("boxes", "labels", "crowd")))
        made = mosaic(tf.constant(position), scene, record["partners"], FILL)
        assert made.pixels.shape == image.shape and made.pixels.dtype == tf.uint8
        assert made.labels.numpy().tolist() == [*record["labels"], *record["partners"]["labels"]]
        for box, label in zip(made.boxes.numpy(), made.labels.numpy(), strict=True):
            top, left, bottom, right = np.round(box * [150, 200, 150, 200]).astype(int)
            inside = made.pixels.numpy()[top + 1 : bottom - 1, left + 1 : right - 1]
            assert hue(inside) == label and inside.reshape(-1, 3).mean(axis=0)[label] > 220
            around = made.pixels.numpy()[top - 3 : bottom + 3, left - 3 : right + 3]
            assert around.reshape(-1, 3).mean(axis=0)[label] < 235  # no less than the object is boxed


def test_an_image_that_cannot_be_read_leaves_its_quarter_empty_and_its_objects_out(records):
    record = next(r for r in records if len(r["labels"]) and len(r["partners"]["labels"]) == 2)
    lost = record["partners"]["owner"][0]
    images = [b"no image" if n == lost else data for n, data in enumerate(record["partners"]["image_bytes"])]
    scene = Scene(decode_image(record["image_bytes"])[0], *(record[key] for key in ("boxes", "labels", "crowd")))
    made = mosaic(tf.constant(0.0), scene, record["partners"] | {"image_bytes": tf.constant(images)}, FILL)
    assert made.labels.numpy().tolist() == [*record["labels"], record["partners"]["labels"][1]]
    assert (made.pixels.numpy() == round(FILL)).all(axis=-1).mean() > 0.2


def test_records_with_partners_resume_at_any_place(records):
    again = RecordStream(coloured_rectangles(), "train", 0, Place(1, 1), PARTNERS).dataset().take(4).as_numpy_iterator()
    for found, expected in zip(again, records[5:], strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, found, expected)


def test_of_a_partner_with_a_class_without_a_box_nothing_is_shown():
    source = coloured_rectangles()
    source.records_of["train"] = [Record.of_class(r.image_bytes, r.image_id, 0) for r in source.records_of["train"]]
    (record,) = RecordStream(source, "train", 0, partners=PARTNERS).dataset().take(1).as_numpy_iterator()
    assert record["partners"]["image_bytes"].tolist() == [b""] * 3 and not len(record["partners"]["labels"])


@pytest.mark.parametrize("number", range(20))
def test_a_rectangle_hides_what_it_says_and_never_most_of_the_subject(number):
    rng = np.random.default_rng(number)
    boxes = random_boxes(rng, 6)
    subject = int(rng.integers(-1, 6))
    chances = tf.constant(rng.uniform(size=4), tf.float32)
    pixels, hidden = erase(
        chances, tf.zeros([200, 300, 3], tf.uint8), tf.constant(boxes), tf.constant(subject), CUT, FILL
    )
    painted = pixels.numpy()[..., 0] == round(FILL)
    for box, share in zip(np.round(boxes * np.tile([200, 300], 2)).astype(int), hidden.numpy(), strict=True):
        assert painted[box[0] : box[2], box[1] : box[3]].mean() == pytest.approx(share, abs=0.1)
    if subject >= 0:
        assert hidden.numpy()[subject] <= CUT
    if painted.any():
        assert 0.015 < painted.mean() < 0.21


EVERYTHING = ViewOptions(mosaic=0.5, rotation=30, vertical_flip=True, erasing=0.7)


def test_with_all_changes_at_once_a_picture_keeps_its_subject_in_its_box(records):
    mosaics = set()
    for number in range(60):
        record = {key: tf.nest.map_structure(tf.constant, value) for key, value in records[number % 9].items()}
        if not len(record["labels"]):
            continue
        chances = tf.random.stateless_uniform([15], [number, 7])
        image = decode_image(record["image_bytes"])[0]
        made, index = random_picture(chances, image, record, tf.constant(0), EVERYTHING, FILL)
        label = int(made.labels[index])
        assert label == int(record["labels"][0]) and not bool(made.crowd[index])
        box = np.round(made.boxes[index].numpy() * np.tile(made.pixels.shape[:2], 2)).astype(int)
        inside = made.pixels.numpy()[box[0] : box[2], box[1] : box[3]].astype(int)
        mine = inside[..., label] - np.delete(inside, label, axis=-1).max(axis=-1) > 100
        assert mine.mean() > 0.03  # what is left of a turned rectangle in the box around it, half of which is hidden
        mosaics.add(len(made.labels) > 1)
    assert mosaics == {True, False}
