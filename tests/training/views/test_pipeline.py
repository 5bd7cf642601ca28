"""The streams of batches: reproducible, of the promised form, and with targets that fit the pixels."""

import io
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from small_source import SmallSource, coloured_rectangles, few_digits, hue, picture

from overfeat_tf.boxes import from_window
from overfeat_tf.network.presets import PRESETS
from training.sources.record import Record
from training.views.augmentation import ViewOptions
from training.views.drawing import Drawing, object_windows, window_maps
from training.views.pipeline import training_batches
from training.views.targets import BACKGROUND, IGNORED, Matching, window_origins

TINY, VIEWS = PRESETS["tiny"], ViewOptions(per_image=2, mirror=False)
SIDE, BATCH = 96, 8


def drawing(views: ViewOptions = VIEWS, fine: bool = True) -> Drawing:
    return Drawing(TINY, TINY.scales, Matching(), views, SIDE, fine)


@pytest.fixture(scope="module")
def digits() -> SmallSource:
    return few_digits(6, 1)


@pytest.fixture(scope="module")
def coloured() -> SmallSource:
    return coloured_rectangles()


def classification(source, seed=0, views=VIEWS):
    return training_batches(source, "train", object_windows(drawing(views)), BATCH, seed)


def spatial(source, seed=0, views=VIEWS, fine=True, voting_only=False):
    shown = window_maps(drawing(views, fine), voting_only=voting_only)
    return training_batches(source, "train", shown, BATCH, seed)


def first(batches, count=3):
    return [tf.nest.map_structure(lambda t: t.numpy(), batch) for batch in batches.take(count)]


@pytest.fixture(scope="module")
def stream(digits):
    """The first batches of windows from the seed 0."""
    return first(spatial(digits), 6)


def test_the_stream_depends_on_its_seed_alone(digits, stream):
    once, again, other = stream[:3], first(spatial(digits)), first(spatial(digits, 2))
    tf.nest.map_structure(np.testing.assert_array_equal, once, again)
    assert not np.array_equal(once[0][0], other[0][0])


def test_no_two_passes_show_the_same_views(digits):
    one = SmallSource({"train": digits.records_of["train"][:1]})
    (pixels, _), (more, _) = first(classification(one), 2)
    assert len({view.tobytes() for view in (*pixels, *more)}) == 2 * BATCH


def test_classification_batches_have_the_promised_form(digits):
    batches = classification(digits)
    pixels, labels = batches.element_spec
    assert pixels == tf.TensorSpec([BATCH, 32, 32, 3]) and labels == tf.TensorSpec([BATCH], tf.int32)
    present = {label for record in digits.records("train") for label in record.labels}
    got = first(batches, 6)
    shown = {label for _, labels in got for label in labels}
    assert shown <= present and len(shown) > 3
    assert all(pixels.min() >= 0 and pixels.max() <= 255 and pixels.std() > 10 for pixels, _ in got)


@pytest.mark.parametrize("fine", [True, False])
def test_spatial_batches_have_the_promised_form(digits, fine):
    windows = TINY.window_count(SIDE, fine)
    pixels, targets = spatial(digits, fine=fine).element_spec
    assert pixels == tf.TensorSpec([BATCH, SIDE, SIDE, 3])
    assert targets["scores"].shape == (BATCH, windows, windows) and targets["scores"].dtype == tf.int32
    assert targets["boxes"].shape == (BATCH, windows, windows, 5)


def test_targets_hold_together(stream):
    scores = np.stack([targets["scores"] for _, targets in stream])
    assert scores.min() == IGNORED and scores.max() <= 10 and (scores == BACKGROUND).any()
    box_classes = np.stack([targets["boxes"][..., 4] for _, targets in stream])
    assert (box_classes[scores > BACKGROUND] == scores[scores > BACKGROUND]).all()
    assert (box_classes[scores <= BACKGROUND] > 0).any() and box_classes.min() == 0
    boxes = np.stack([targets["boxes"][..., :4] for _, targets in stream])
    assert not boxes[box_classes == 0].any()


def test_detection_learns_boxes_at_all_windows_but_those_of_the_background(digits, stream):
    for (_, every), (_, voting) in zip(stream[:2], first(spatial(digits, voting_only=True), 2), strict=True):
        np.testing.assert_array_equal(voting["scores"], every["scores"])
        background = every["scores"] == BACKGROUND
        assert every["boxes"][background][:, 4].any() and not voting["boxes"][background][:, 4].any()
        np.testing.assert_array_equal(voting["boxes"][~background], every["boxes"][~background])


def test_a_classification_view_shows_the_object_that_it_is_labelled_with(coloured):
    for pixels, labels in first(classification(coloured, views=replace(VIEWS, mirror=True))):
        assert [hue(view[12:20, 12:20]) for view in pixels] == labels.tolist()


def test_boxes_and_classes_are_where_the_pixels_are(coloured):
    origins = window_origins(TINY, SIDE, True)
    views = replace(VIEWS, mirror=True, colour=0.0)
    named = trained = 0
    for batch, targets in first(spatial(coloured, views=views), 4):
        for view, scores, edges in zip(batch, targets["scores"], targets["boxes"], strict=True):
            placed = from_window(tf.constant(edges[..., :4]), origins, float(TINY.window)).numpy()
            # The view's own objects: pixels nearly as bright as can be, in one channel.
            light = (view.max(axis=-1) > 200) & (view.min(axis=-1) < 60)
            for i, j in np.argwhere(edges[..., 4]):
                top, left, bottom, right = placed[i, j]
                rows, columns = np.flatnonzero(light.any(axis=1)), np.flatnonzero(light.any(axis=0))
                seen = np.clip([top, left, bottom, right], 0, SIDE)
                np.testing.assert_allclose(seen, [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], atol=1.01)
                assert edges[i, j, 4] == 1 + hue(view[light][None])
                trained += 1
                if scores[i, j] > BACKGROUND:
                    named += 1
                    middle = view[int(seen[0]) : int(seen[2]), int(seen[1]) : int(seen[3])]
                    assert hue(middle) + 1 == scores[i, j]
    assert named > 50 and trained > named


def test_object_share_rules_how_many_views_are_centred_on_an_object():
    many = few_digits(40, 1)  # and many views: about 19 in 20 centred views show an object at a size to be found
    shares = {}
    for share in (0.0, 1.0):
        got = first(spatial(many, views=replace(VIEWS, object_share=share)), 30)
        shares[share] = np.mean([(targets["scores"] > BACKGROUND).any(axis=(1, 2)) for _, targets in got])
    assert shares[1.0] > 0.9 and shares[0.0] < shares[1.0] - 0.2


def test_an_image_of_nothing_trains_the_background(coloured):
    nothing = SmallSource({"train": coloured.records_of["train"][:1]})
    ((_, targets),) = first(spatial(nothing), 1)
    assert targets["scores"].max() == BACKGROUND and not targets["boxes"].any()


def test_a_class_without_a_box_is_shown_by_crops_all_over_the_image():
    image = np.zeros((100, 140, 3), np.uint8)
    image[..., 0] = np.arange(100)[:, None] * 2  # a pixel says where it is from
    image[..., 1] = np.arange(140)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    source = SmallSource({"train": [Record.of_class(stream.getvalue(), "x", 2)]})
    plain = replace(VIEWS, colour=0.0, stretch=0.0)
    pixels, labels = (np.concatenate(part) for part in zip(*first(classification(source, views=plain), 8), strict=True))
    assert (labels == 2).all()
    tops, lefts = pixels[:, 0, 0, 0] / 2, pixels[:, 0, 0, 1]
    heights, widths = pixels[:, -1, 0, 0] / 2 - tops, pixels[:, 0, -1, 1] - lefts
    window = 100 * 221 / 256  # of the image's shorter side (3.1), or of the part of it that is shown
    assert (heights > window / VIEWS.zoom * 0.97).all() and (heights < window * 1.03).all()
    assert heights.max() > 1.15 * heights.min()
    np.testing.assert_allclose(widths, heights, rtol=0.07)
    assert tops.min() < 3 and tops.max() > 10 and lefts.min() < 5 and lefts.max() > 45


def test_images_with_a_class_alone_are_left_out_where_windows_need_boxes(coloured):
    unboxed = Record.of_class(picture(150, 200, [(0, 0, 150, 200)], (255, 255, 255)), "white", 0)
    source = SmallSource({"train": [unboxed, *coloured.records("train")]}, class_names=coloured.class_names)
    for pixels, _ in first(spatial(source, views=replace(VIEWS, colour=0.0)), 6):
        assert not (pixels > 250).all(axis=-1).any()  # white nowhere


def test_a_crowd_is_neither_shown_nor_learnt_nor_background(coloured):
    _, red, green, _ = coloured.records_of["train"]
    blend = Record.of_objects(
        picture(150, 200, [(40, 60, 100, 110)], (255, 0, 0)),
        "both",
        [*red.boxes, [0.0, 0.0, 1.0, 1.0]],
        [0, 1],
        crowd=[False, True],
    )
    source = SmallSource({"train": [blend, replace(green, crowd=np.array([True]))]}, class_names=coloured.class_names)
    assert all((labels == 0).all() for _, labels in first(classification(source)))
    seen = set()
    for _, targets in first(spatial(source)):
        seen |= set(targets["scores"].ravel())
        assert set(targets["boxes"][..., 4].ravel()) <= {0, 1}
    assert seen == {IGNORED, BACKGROUND, 1}  # background beside the second image's crowd
