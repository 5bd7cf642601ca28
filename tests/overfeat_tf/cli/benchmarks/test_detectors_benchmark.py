"""The benchmark against RetinaNet: its views, boxes and schedule; with KerasHub, that it trains and is scored."""

from dataclasses import replace
from io import BytesIO
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from overfeat_tf.cli.benchmarks import detectors
from overfeat_tf.cli.benchmarks.detectors import (
    MOST,
    SIDE,
    RetinaNet,
    TimedRate,
    build_retinanet,
    train_retinanet,
)
from overfeat_tf.models.predictor import Predictor
from training.evaluation.evaluate import evaluate
from training.recipes import get_recipe
from training.sources.record import Record
from training.views.reading import RecordStream, decode_records

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def picture(height: int, width: int, box: tuple[int, int, int, int], colour=(255, 255, 255)) -> bytes:
    """Encode a bright rectangle (pixels, yxyx) on black."""
    image = np.zeros((height, width, 3), np.uint8)
    image[box[0] : box[2], box[1] : box[3]] = colour
    file = BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


class Rectangles:
    """An image without an object, and three with a rectangle whose colour is its class."""

    name, class_names, splits, boxed = "rectangles", ("red", "green", "blue"), ("train", "val"), True

    def records(self, split, limit=None):
        size, records = (150, 200), []
        for label, colour in enumerate((RED, GREEN, BLUE)):
            box = (40, 60 + 20 * label, 100, 110 + 20 * label)
            data = picture(*size, box, colour)
            records.append(Record.of_objects(data, str(label), [np.array(box) / np.tile(size, 2)], [label]))
        records.append(Record.of_objects(picture(*size, (0, 0, 0, 0)), "none", [], []))
        return iter((records * (8 if split == "train" else 1))[:limit])


class Clock:
    """A clock that tells the time that it is set to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(detectors, "computing_seconds", lambda: self.now)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> str:
    """Save a classifier of five strided layers; return its path."""
    x = pixels = keras.Input((None, None, 3))
    for channels in (8, 8, 16, 16, 32):
        x = keras.layers.Conv2D(channels, 3, 2, "same", use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x))
    path = tmp_path_factory.mktemp("backbone") / "small.keras"
    keras.Model(pixels, x).save(path)
    return str(path)


def test_a_view_shows_its_objects_where_its_boxes_say():
    records = decode_records(RecordStream(Rectangles(), "train", 0).dataset())
    draw = tf.function(detectors._views(2).draw, autograph=False)
    for number, record in enumerate(records.take(4)):
        ((pixels, targets),) = draw(tf.constant([number, 1]), record)
        assert pixels.shape == (SIDE, SIDE, 3) and targets["boxes"].shape == (3, 4)
        labels = targets["labels"].numpy()
        assert (labels >= 0).sum() == len(record["labels"])
        for box, label in zip(targets["boxes"].numpy()[labels >= 0], labels[labels >= 0], strict=True):
            bright = np.argwhere(pixels.numpy()[..., int(label)] - pixels.numpy().min(axis=-1) > 60)
            np.testing.assert_allclose([*bright.min(axis=0), *bright.max(axis=0) + 1], box, atol=2.0)
            top, left, bottom, right = box.round().astype(int)
            assert pixels.numpy()[top:bottom, left:right].mean(axis=(0, 1)).argmax() == label


class Brightest:
    """In a detector's place: finds the bright rectangle of the square that it is shown."""

    def __call__(self, pixels, training):
        return tf.reduce_mean(pixels[0], axis=-1) > 200

    def decode_predictions(self, bright, pixels):
        places = tf.cast(tf.where(bright), tf.float32)
        box = tf.concat([tf.reduce_min(places, axis=0), tf.reduce_max(places, axis=0) + 1], axis=0)
        return {
            "boxes": tf.pad(box[None, None], [[0, 0], [0, MOST - 1], [0, 0]], constant_values=-1.0),
            "confidence": tf.fill([1, MOST], 0.75),
            "labels": tf.ones([1, MOST], tf.int64),
            "num_detections": tf.constant([1]),
        }


def test_boxes_are_those_of_the_image_of_any_shape():
    model = RetinaNet(Brightest(), ("cat", "dog"))
    sizes = [(150, 200), (600, 300)]
    images = [picture(height, width, (30, 60, 90, 120)) for height, width in sizes]
    answer = model.detect([*images, b"no image"])
    for row, size in enumerate(sizes):
        expected = np.array((30, 60, 90, 120)) / np.tile(size, 2)
        np.testing.assert_allclose(answer["detection_boxes"][row, 0], expected, atol=0.01)
        assert tuple(answer["image_size"][row]) == size
    assert answer["num_detections"].tolist() == [1, 1, 0]
    assert answer["detection_classes"][:, :2].tolist() == [[2, 0], [2, 0], [0, 0]]
    assert answer["detection_class_entities"][0, :2].tolist() == [b"dog", b""]
    assert answer["status"][0] == b"" and answer["status"][2].startswith(b"expected")
    with pytest.raises(ValueError, match="expected a call of detect"):
        model.localize(images)


def test_the_rate_warms_up_and_falls_with_the_time(monkeypatch):
    clock = Clock(monkeypatch)
    schedule = TimedRate(ends=110.0)
    schedule.set_model(SimpleNamespace(optimizer=SimpleNamespace(learning_rate=None), stop_training=False))
    clock.now = 10.0
    schedule.on_train_begin()
    rates = []
    for batch, now in ((0, 10.0), (detectors.WARM_UP, 60.0), (detectors.WARM_UP + 1, 109.9)):
        clock.now = now
        schedule.on_train_batch_begin(batch)
        rates.append(schedule.model.optimizer.learning_rate / detectors.LEARNING_RATE)
        schedule.on_train_batch_end(batch)
        assert not schedule.model.stop_training
    np.testing.assert_allclose(rates, [1 / detectors.WARM_UP, 0.5, 0.0], atol=1e-4)
    clock.now = 110.0
    schedule.on_train_batch_end(99)
    assert schedule.model.stop_training


def test_two_short_trainings_tell_how_many_steps_fit(monkeypatch, tmp_path):
    clock = Clock(monkeypatch)

    def train(recipe, source, run):
        clock.now += 20 + 0.5 * recipe.classification.steps + 2 * recipe.detection.steps

    monkeypatch.setattr(detectors, "train", train)
    recipe = get_recipe("finetune")
    stages = {name: replace(getattr(recipe, name), steps=1000, passes=None) for name in detectors.TASKS}
    fitted = detectors.fit_to_time(replace(recipe, **stages), Rectangles(), 520.0, tmp_path)
    assert fitted.detection.steps == fitted.localization.steps == 200


def test_a_slow_first_training_does_not_make_the_next_one_endless(monkeypatch, tmp_path):
    clock, seconds = Clock(monkeypatch), iter((100.0, 60.0))

    def train(recipe, source, run):
        clock.now += next(seconds)

    monkeypatch.setattr(detectors, "train", train)
    recipe = get_recipe("finetune")
    stages = {name: replace(getattr(recipe, name), steps=1000, passes=None) for name in detectors.TASKS}
    fitted = detectors.fit_to_time(replace(recipe, **stages), Rectangles(), 600.0, tmp_path)
    assert 1000 <= fitted.detection.steps < 10_000


class Oracle(Predictor):
    """A detector that knows the objects of `Rectangles`, and shrinks their boxes to a share of their sides."""

    labels, tasks = Rectangles.class_names, ("detection",)

    def __init__(self, share: float):
        self._share = share

    def _run(self, signature, **inputs):
        known = {record.image_bytes: record for record in Rectangles().records("val")}
        records = [known.get(image) if isinstance(image, bytes) else None for image in next(iter(inputs.values()))]
        boxes, classes = np.zeros((len(records), 1, 4)), np.zeros((len(records), 1))
        for row, record in enumerate(records):
            if record is not None and len(record.labels):
                top_left, bottom_right = record.boxes[0, :2], record.boxes[0, 2:]
                boxes[row, 0] = [*top_left, *(top_left + self._share * (bottom_right - top_left))]
                classes[row] = record.labels + 1
        return {
            "detection_boxes": boxes,
            "detection_scores": np.full_like(classes, 0.9),
            "detection_classes": classes,
            "num_detections": (classes > 0).sum(axis=1),
            "image_size": np.tile([150, 200], (len(records), 1)),
            "status": np.full(len(records), b"", object),
        }


def test_both_are_scored_alike_and_given_the_same_time(backbone, monkeypatch):
    pytest.importorskip("pycocotools")
    clock = Clock(monkeypatch)

    def trained(share: float, seconds: float) -> Oracle:
        clock.now += seconds
        return Oracle(share)

    monkeypatch.setattr(detectors, "find_spec", lambda name: name)
    monkeypatch.setattr(detectors, "open_source", lambda name: Rectangles())
    monkeypatch.setattr(detectors, "train", lambda recipe, source, run: SimpleNamespace(model=trained(1.0, 120.0)))
    monkeypatch.setattr(
        detectors, "train_retinanet", lambda backbone, source, split, seconds, seed: trained(0.8, seconds)
    )
    report = detectors.measure(backbone, ["rectangles"], None, 2)
    ratios = report.as_dict()["detectors"]["ratios"]
    assert ratios["map50_over_retinanet"] == pytest.approx(1.0)
    assert ratios["map_over_retinanet"] == pytest.approx(10 / 3)  # an IoU of 0.64 counts at 0.5, 0.55 and 0.6
    assert ratios["map75_over_retinanet"] == float("inf")
    assert ratios["seconds_over_retinanet"] > 0 and len(report.samples["map_over_retinanet"]) == 2
    assert "| finetune | 2.0 | 1.000 | 1.000 | 1.000 | " in report.tables[0]
    assert "| RetinaNet | 2.0 | 1.000 | 0.300 | 0.000 | " in report.tables[0]


def test_an_image_is_timed_where_the_first_cannot_be_read():
    class Damaged(Rectangles):
        def records(self, split, limit=None):
            return iter([Record.of_objects(b"no image", "damaged", [], []), *super().records(split, limit)])

    seconds = detectors.time_images(Damaged(), "val", [Oracle(1.0), Oracle(0.5)])
    assert len(seconds) == 2 and min(seconds) > 0


def test_a_backbone_without_a_map_of_each_stride_is_refused_before_a_training(tmp_path, monkeypatch):
    x = pixels = keras.Input((None, None, 3))
    for channels in (8, 8, 16):
        x = keras.layers.ReLU()(keras.layers.Conv2D(channels, 3, 2, "same")(x))
    x = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x))
    keras.Model(pixels, x).save(tmp_path / "shallow.keras")
    monkeypatch.setattr(detectors, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match=r"^expected an activation layer at a stride of 16 pixels"):
        detectors.measure(str(tmp_path / "shallow.keras"), ["digits"], None, 1)


def test_without_keras_hub_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setattr(detectors, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"^expected KerasHub [^\n]*: pip install keras-hub$"):
        detectors.measure("small.keras", ["voc:nowhere"], None, 1)


def test_a_retinanet_on_a_backbone(backbone):
    pytest.importorskip("keras_hub")
    detector = build_retinanet(backbone, 3, finest=4)
    outputs = detector(tf.random.uniform([1, SIDE, SIDE, 3], 0, 255))
    cells = sum((SIDE // 2**level) ** 2 for level in (4, 5, 6, 7))
    assert outputs["cls_logits"].shape == (1, 9 * cells, 3)
    np.testing.assert_allclose(np.mean(tf.sigmoid(outputs["cls_logits"])), 0.01, atol=0.003)
    assert np.abs(outputs["bbox_regression"]).max() < 1.5
    frozen = [layer for layer in detector.backbone.image_encoder.layers if "batch_norm" in layer.name]
    assert len(frozen) == 5 and not any(layer.trainable for layer in frozen)
    assert any(layer.trainable_weights for layer in detector.backbone.image_encoder.layers)


@pytest.mark.long
def test_a_retinanet_takes_a_step_and_is_scored(backbone):
    pytest.importorskip("keras_hub")
    pytest.importorskip("pycocotools")
    model = train_retinanet(backbone, Rectangles(), "train", seconds=0.0)
    figures = evaluate(model, Rectangles(), "val", quiet=True)
    assert figures["images"] == 4 and all(0 <= figures[name] <= 1 for name in detectors.FIGURES)


@pytest.mark.long
def test_both_detectors_are_compared(backbone, monkeypatch):
    pytest.importorskip("keras_hub")
    pytest.importorskip("pycocotools")
    monkeypatch.setattr(detectors, "open_source", lambda name: Rectangles())
    monkeypatch.setattr(detectors, "PILOTS", (0.005, 0.01))
    report = detectors.measure(backbone, ["rectangles"], 1.0, 1)
    assert set(report.samples) == {f"{name}_over_retinanet" for name in (*detectors.FIGURES, "seconds")}
    assert report.samples["seconds_over_retinanet"][0] > 0
    (table,) = report.tables
    assert "| finetune | " in table and "| RetinaNet | " in table
