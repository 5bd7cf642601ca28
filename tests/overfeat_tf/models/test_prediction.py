"""`predict` on images of any kind: what it takes, what it refuses, and what it gives."""

import io
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from small_network import LABELS, OPTIONS, encode, picture

import overfeat_tf as of

IMAGE = picture(90, 120)
EXIF_TURNED = 6  # stored on its side


class Broken(Image.Image):
    """An image as Pillow opens it from a damaged file, whose fault shows once its pixels are asked for."""

    def load(self):
        raise SyntaxError("broken PNG file (chunk b'IDAX')")


BROKEN = Broken()


@pytest.fixture(scope="module")
def model(network):
    return of.Model(network, LABELS, OPTIONS, ("classification", "detection"))


def same(found, expected):
    np.testing.assert_allclose(found.boxes, expected.boxes, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)
    return found.names == expected.names and found.size == expected.size


def test_boxes_are_in_pixels_and_those_worth_showing_are_kept(model):
    answer = {key: values[0] for key, values in model.detect(IMAGE[None]).items()}
    count = int(answer["num_detections"])
    every = model.predict(IMAGE, threshold=0, several=True)
    assert len(every) == count > 0 and every.size == (90, 120)
    np.testing.assert_allclose(every.boxes, answer["detection_boxes"][:count] * [90, 120, 90, 120], rtol=1e-5)
    assert every.names == tuple(LABELS[number] for number in every.classes)
    least = float(np.sort(every.scores)[-2])
    shown = model.predict(IMAGE, threshold=least, several=True)
    assert shown.scores.tolist() == [score for score in every.scores.tolist() if score >= least]
    assert len(model.predict(IMAGE, threshold=0)) < count  # of boxes that overlap, the best
    assert len(model.predict(IMAGE)) <= len(every)


def test_images_of_every_kind_are_answered_alike(model, tmp_path):
    (tmp_path / "image.png").write_bytes(encode(IMAGE))
    alpha = np.dstack([IMAGE, np.arange(120 * 90, dtype=np.uint8).reshape(90, 120)])
    turned, exif = Image.fromarray(np.rot90(IMAGE).copy()), Image.Exif()
    exif[0x0112] = EXIF_TURNED
    kinds = {
        "text": str(tmp_path / "image.png"),
        "path": tmp_path / "image.png",
        "bytes": encode(IMAGE),
        "bytes with alpha": encode(alpha),
        "bytes of TIFF": encode(IMAGE, "TIFF"),
        "PIL": Image.fromarray(IMAGE),
        "PIL with alpha": Image.fromarray(alpha),
        "PIL turned": Image.open(io.BytesIO(encode(turned, exif=exif))),
        "uint8": IMAGE,
        "alpha": alpha,
        "uint16": IMAGE.astype(np.uint16) * 257,
        "uint16, the other byte order": (IMAGE.astype(np.uint16) * 257).astype(">u2"),
        "float32": IMAGE / np.float32(255),
        "float64": IMAGE / 255,
        "tensor": tf.constant(IMAGE),
    }
    expected = model.predict(IMAGE, threshold=0)
    for kind, image in kinds.items():
        assert same(model.predict(image, threshold=0), expected), kind
    for many in (list(kinds.values()), (image for image in kinds.values()), np.stack([IMAGE] * 2)):
        found = model.predict(many, threshold=0)
        assert isinstance(found, list) and len(found) in (2, len(kinds)) and all(same(one, expected) for one in found)
    gray = np.asarray(Image.fromarray(IMAGE).convert("L"))
    expected = model.predict(np.dstack([gray] * 3), threshold=0)
    for image in (gray, gray[..., None], Image.fromarray(gray), encode(gray)):
        assert same(model.predict(image, threshold=0), expected)


@pytest.mark.parametrize(
    ("image", "line"),
    [
        ("nowhere.png", "nowhere.png: No such file"),
        (b"no image", "expected JPEG, PNG, .*got 8 bytes"),
        (encode(IMAGE)[:500], "damaged or truncated"),
        (IMAGE.astype(np.int64), r"expected pixels of uint8, uint16 or float; got int64 \[90, 120, 3\]"),
        (IMAGE.astype(np.float32), "expected float pixels from 0 to 1; got 0 to 2"),
        (BROKEN, "broken PNG file"),
        (np.full((9, 9, 3), np.nan), "expected float pixels from 0 to 1; got nan"),
        (np.zeros((9, 9, 5), np.uint8), r"expected pixels \[H, W\].*got uint8 \[9, 9, 5\]"),
    ],
    ids=["no file", "no image", "cut off", "int64", "0..255", "PIL", "nan", "channels"],
)
def test_what_is_no_image_is_one_line_and_stops_no_other(model, image, line):
    with pytest.raises(ValueError, match=line) as caught:
        model.predict(image)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("expected")
    broken, whole = model.predict([image, IMAGE], threshold=0)
    assert len(broken) == 0 and broken.status and same(whole, model.predict(IMAGE, threshold=0))
    assert broken.status in repr(broken) and broken._repr_jpeg_() is None
    with pytest.raises(ValueError, match="could be read"):
        broken.draw()


def test_no_image_at_all_is_refused(model):
    with pytest.raises(ValueError, match=r"expected an image or many: .*got 'NoneType'"):
        model.predict(None)
    assert model.predict([]) == []
    with pytest.raises(ValueError, match="expected a task that the model answers"):
        model.predict(IMAGE, task="localization")


def test_a_prediction_draws_itself_and_becomes_cocos_results(model, tmp_path):
    (tmp_path / "image.png").write_bytes(encode(IMAGE))
    found = model.predict(tmp_path / "image.png", threshold=0)
    drawn = np.asarray(found.draw())
    assert drawn.shape[1] / drawn.shape[0] == pytest.approx(120 / 90, rel=0.02)
    assert not np.array_equal(drawn, np.asarray(Image.fromarray(IMAGE).resize(drawn.shape[1::-1])))
    with Image.open(io.BytesIO(found._repr_jpeg_())) as shown:
        assert np.abs(np.asarray(shown, int) - drawn).mean() < 3
    Image.fromarray(IMAGE).save(tmp_path / "image.tiff")
    np.testing.assert_array_equal(model.predict(tmp_path / "image.tiff", threshold=0).draw(), drawn)
    with Image.open(io.BytesIO(model.predict([IMAGE] * 3, threshold=0)._repr_jpeg_())) as sheet:
        assert sheet.width > 900
    rows = json.loads(json.dumps(found.to_coco(7)))
    top, left, bottom, right = found.boxes[0].tolist()
    assert rows[0]["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=1e-4)
    assert rows[0] | {"bbox": None} == {
        "image_id": 7,
        "category_id": LABELS.index(found.names[0]) + 1,
        "bbox": None,
        "score": pytest.approx(float(found.scores[0])),
    }
    own = {name: 10 * number for number, name in enumerate(LABELS)}
    assert [row["category_id"] for row in found.to_coco(7, own)] == [own[name] for name in found.names]
    with pytest.raises(ValueError, match="expected a category id for each class"):
        found.to_coco(7, {})
    assert repr(found).startswith(f"<Prediction: {len(found)} object")
    assert f" in 90 x 120 pixels: {found.names[0]} 0." in repr(found)


def test_a_classifier_names_classes(model):
    expected = model.classify([encode(IMAGE)])
    for image in (IMAGE, encode(IMAGE), Image.fromarray(IMAGE)):
        found = model.predict(image, task="classification")
        assert found.names == tuple(name.decode() for name in expected["classes"][0]) and found.boxes is None
        np.testing.assert_allclose(found.scores, expected["scores"][0], rtol=1e-4)
        assert found.draw().size and repr(found).startswith(f"<Prediction: {found.names[0]} 0.")
    with pytest.raises(ValueError, match="expected detections; got classes"):
        found.to_coco()
    with pytest.raises(ValueError, match="expected JPEG"):
        model.predict(b"no image", task="classification")


def test_a_loaded_model_says_what_it_is(model, tmp_path, capsys):
    model.save(tmp_path / "run")
    loaded = of.load(tmp_path / "run")
    assert same(loaded.predict(IMAGE, threshold=0), model.predict(IMAGE, threshold=0))
    assert repr(loaded) == "<Model: 3 classes (cat, dog, bird); classification, detection>"
    assert repr(loaded.network) == "<Network tiny: 3 classes and background; windows of 32 pixels, every 4>"
    loaded.summary()
    text = capsys.readouterr().out
    parts = loaded.parts_of(loaded.network).values()
    assert f"{sum(part.count_params() for part in parts):,}" in text
    assert "3: cat, dog, bird" in text and "max_windows=60" in text and "not calibrated" in text
