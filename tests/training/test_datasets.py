"""Data from Python: what `datasets.open` takes, its records, and the batches of each stage."""

import csv
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_run import RECIPE
from small_source import SmallSource, coloured_rectangles, few_digits

import overfeat_tf as of
from overfeat_tf.images.decode import decode_image
from training.sources import open_data
from training.sources.checks import Kind
from training.sources.record import SCHEMA, Record, as_dataset, count_images
from training.tasks import stage_views
from training.views.pipeline import training_batches


@pytest.fixture(scope="module")
def source():
    return few_digits(6, 2)


def elements(source, split="train", pixels=False, names=False) -> tf.data.Dataset:
    """Give a source's records as people write them: an image, its boxes and its labels."""

    def each():
        for record in source.records(split):
            image = {"image": decode_image(record.image_bytes)[0]} if pixels else {"image_bytes": record.image_bytes}
            labels = [source.class_names[label] for label in record.labels] if names else record.labels
            yield {**image, "boxes": record.boxes, "labels": labels}

    image = (
        {"image": tf.TensorSpec([None, None, 3], tf.uint8)} if pixels else {"image_bytes": tf.TensorSpec([], tf.string)}
    )
    spec = {
        **image,
        "boxes": tf.TensorSpec([None, 4], tf.float32),
        "labels": tf.TensorSpec([None], tf.string if names else tf.int32),
    }
    return tf.data.Dataset.from_generator(each, output_signature=spec)


def test_digits_open_with_splits_classes_and_records():
    data = of.datasets.open("digits")
    assert data.class_names == tuple("0123456789") and {"train", "val", "test"} <= set(data.splits)
    record = next(iter(data.records("train")))
    assert record["boxes"].shape[1:] == [4] and record["image_bytes"].dtype == tf.string
    assert "digits: 10 classes" in repr(data)
    assert open_data(data) is data.source
    with pytest.raises(ValueError, match="expected a split of digits"):
        data.records("training")


@pytest.mark.parametrize("stage", [pytest.param("classification", marks=pytest.mark.long), "detection"])
def test_batches_are_those_that_training_takes(stage, source):
    network = of.build("tiny", 10, background=stage == "detection", weights=False)
    found = of.datasets.open(source).batches(stage, network, RECIPE, batch=3, seed=5)
    views = stage_views(stage, network.preset, RECIPE, RECIPE.inference)
    expected = training_batches(source, "train", views, 3, 5)
    assert found.element_spec == expected.element_spec
    for ours, theirs in zip(found.take(1), expected.take(1), strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, ours, theirs)


def test_batches_refuse_what_would_never_come(source):
    network = of.build("tiny", 10, weights=False)
    for boxed, line in ((False, "expected boxes for detection"), (True, "expected images with something to learn")):
        bare = SmallSource({"train": [Record.of_class(b"0", "0", 1)]}, boxed=boxed)
        with pytest.raises(ValueError, match=line):
            of.datasets.open(bare).batches("detection", network, RECIPE)
    with pytest.raises(ValueError, match="expected side to be at least 117 pixels for 'small'"):
        of.datasets.open(source).batches("detection", of.build("small", 10, weights=False), RECIPE)


def test_batches_refuse_unknown_stages_and_recipes(source):
    network = of.build("tiny", 10, weights=False)
    with pytest.raises(ValueError, match="did you mean 'detection'"):
        of.datasets.open(source).batches("detect", network, RECIPE)
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        of.datasets.open(source).batches("detection", network, "digit")


@pytest.mark.parametrize("options", [{}, {"pixels": True}, {"names": True}], ids=["bytes", "pixels", "names"])
def test_tf_data_has_the_records_of_the_source_that_it_comes_from(options):
    source = coloured_rectangles()
    data = of.datasets.open(elements(source, **options), None if options else source.class_names)
    classes = {"pixels": ("0", "1", "2"), "names": ("blue", "green", "red")}.get("".join(options), source.class_names)
    assert data.splits == ("train",) and data.class_names == classes
    for ours, theirs in zip(data.source.records("train"), source.records("train"), strict=True):
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-6)
        if "names" in options:
            assert [classes[one] for one in ours.labels] == [source.class_names[one] for one in theirs.labels]
        else:
            assert ours.labels.tolist() == theirs.labels.tolist()
        pixels = (decode_image(each.image_bytes)[0] for each in (ours, theirs))
        np.testing.assert_array_equal(*pixels)


def test_records_of_one_data_set_are_data_again(source):
    data = of.datasets.open({split: as_dataset(source, split) for split in source.splits}, source.class_names)
    for split in source.splits:
        for ours, theirs in zip(data.source.records(split), source.records(split), strict=True):
            assert (ours.image_id, ours.image_bytes) == (theirs.image_id, theirs.image_bytes)
            np.testing.assert_array_equal(ours.boxes, theirs.boxes)


def test_a_crowd_is_difficult_whoever_says_so(source):
    record = next(source.records("train"))
    count = len(record.labels)
    element = {"image_bytes": record.image_bytes, "boxes": record.boxes, "labels": record.labels}
    crowded = {**element, "crowd": np.arange(count) == 0}
    full = {**{key: getattr(record, key) for key in SCHEMA}, "crowd": crowded["crowd"]}
    for each in (crowded, full):
        data = tf.data.Dataset.from_tensors(each)
        (found,) = open_data(data, source.class_names).records("train")
        assert found.difficult.tolist() == found.crowd.tolist() == [True] + [False] * (count - 1)


def test_records_that_are_complete_are_checked_too(source):
    (record,) = source.records("train", 1)
    count, found = len(record.labels), []

    def opened(**changes):
        each = {**{key: getattr(record, key) for key in SCHEMA}, **changes}
        return list(open_data(tf.data.Dataset.from_tensors(each), source.class_names, found.append).records("train"))

    with pytest.raises(
        ValueError, match=r"^expected boxes \[ymin, xmin, ymax, xmax\] from 0 to 1; image '.*' has [\d.]+:"
    ):
        opened(boxes=record.boxes * 100)
    with pytest.raises(
        ValueError, match=rf"^expected a label for each box of image '.*'; got {count + 1} for {count}$"
    ):
        opened(labels=np.append(record.labels, 0))
    assert [len(each.labels) for each in opened(boxes=np.full_like(record.boxes, np.nan))] == [0]
    assert [len(each.labels) for each in opened(labels=record.labels * 0 + 99)] == [0]
    assert {finding.kind for finding in found} == {Kind.NO_NUMBERS, Kind.UNKNOWN_CLASS}
    (kept,) = opened(boxed=record.boxed & False, boxes=np.full_like(record.boxes, np.nan))
    assert not kept.boxed.any() and (kept.boxes == (0, 0, 1, 1)).all()


def test_pixels_are_counted_without_encoding_them(monkeypatch):
    pixels = tf.data.Dataset.from_tensor_slices({"image": np.zeros((5, 8, 9, 3), np.uint8), "label": [0, 1, 0, 1, 1]})
    source = open_data(pixels)
    monkeypatch.setattr(tf.io, "encode_png", lambda *_, **__: pytest.fail("an image was encoded"))
    assert (count_images(source, "train", 9), count_images(source, "train", 2)) == (5, 2)


def test_classes_without_boxes_and_what_can_not_be_used(source):
    record = next(source.records("train"))
    images = tf.data.Dataset.from_tensor_slices({"image_bytes": [record.image_bytes] * 3, "label": [0, 1, 7]})
    found = []
    opened = open_data(images, ("a", "7"), found.append)
    assert not opened.boxed and [each.labels.tolist() for each in opened.records("train")] == [[0], [1]]
    assert [finding.kind for finding in found] == [Kind.UNKNOWN_CLASS]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda data: data.map(lambda each: {**each, "labels": tf.sparse.from_dense(each["labels"])}),
            "expected labels as a dense or ragged tensor in split 'train'; got 'SparseTensorSpec'",
        ),
        (lambda data: data.batch(2), r"one image in an element of split 'train'.*unbatch\(\)"),
        (lambda data: data.repeat(), r"expected data that ends .* leave out repeat\(\)"),
        (lambda data: data.map(lambda each: each["image_bytes"]), "expected dictionaries with image or image_bytes"),
        (lambda data: data.map(lambda each: {"pixels": each["boxes"], "labels": each["labels"]}), "got labels, pixels"),
        (lambda data: {"val": 3}, "expected a tf.data.Dataset as split 'val'; got 'int'"),
        (lambda data: 3, "expected a SOURCE such as 'voc:DIR', a source, or a tf.data.Dataset; got 'int'"),
        (
            lambda data: data.map(lambda each: {**each, "boxes": each["boxes"] * 100}),
            r"expected boxes \[ymin, xmin, ymax, xmax\] from 0 to 1; image '0' has",
        ),
        (lambda data: data.map(lambda each: {**each, "labels": tf.cast(each["labels"], tf.float32)}), "whole numbers"),
        (
            lambda data: data.map(lambda each: {"image_bytes": each["image_bytes"], "labels": [0, 0, 1]}),
            "expected one label for image '0', which has no boxes; got 3",
        ),
        (
            lambda data: data.map(lambda each: {**each, "labels": each["labels"][:0]}),
            "expected a label for each box of image '0'; got 0 for",
        ),
    ],
)
def test_other_elements_are_refused_in_one_line(change, line, source):
    names = source.class_names if not isinstance(change(elements(source)), int) else None
    with pytest.raises(ValueError, match=line) as caught:
        next(open_data(change(elements(source)), names).records("train"))
    assert "\n" not in str(caught.value)


class Watch(keras.callbacks.Callback):
    """Notes the stage of each epoch, begin and end, and ends classification after its first epoch."""

    def __init__(self):
        super().__init__()
        self.seen, self.begun, self.ended = [], [], []

    def on_train_begin(self, logs=None):
        self.begun.append(self.model.name)

    def on_train_end(self, logs=None):
        self.ended.append((self.model.name, logs["loss"]))

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append((self.model.name, epoch, logs["loss"]))
        self.model.stop_training = self.model.name == "classification"


def test_train_takes_tf_data_and_callbacks_and_returns_model_and_history(source, tmp_path, no_boards):
    splits, stages = {split: elements(source, split) for split in source.splits}, ["classification", "localization"]
    longer = replace(RECIPE.classification, steps=5)  # epochs of 2 and 3
    recipe = replace(RECIPE, name="own", classification=longer, localization=longer)
    watch, table = Watch(), keras.callbacks.CSVLogger(str(tmp_path / "table.csv"))  # which writes its file anew
    options = {"stages": stages, "class_names": source.class_names}
    model, history = of.train(
        recipe, splits, tmp_path / "run", callbacks=[watch, table, keras.callbacks.History()], **options
    )
    assert model.tasks == tuple(stages) and model.labels == source.class_names
    assert {stage: len(figures["loss"]) for stage, figures in history.items()} == {
        "classification": 1,
        "localization": 2,
    }
    assert {"top1", "val_loss"} <= set(history["classification"])
    assert watch.seen == [(stage, epoch, loss) for stage, f in history.items() for epoch, loss in enumerate(f["loss"])]
    assert watch.begun == stages
    assert watch.ended == [(stage, figures["loss"][-1]) for stage, figures in history.items()]
    assert [row["epoch"] for row in csv.DictReader((tmp_path / "table.csv").read_text().splitlines())] == ["0", "1"]
    again = of.train(recipe, splits, str(tmp_path / "run"), **options)
    assert again.model.tasks == of.load(tmp_path / "run").tasks == model.tasks and again.history == {}


def test_train_names_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        of.train("digit")
    with pytest.raises(ValueError, match="expected --data SOURCE: the recipe 'voc' has no data of its own"):
        of.train("voc", run=tmp_path)
    with pytest.raises(ValueError, match=r"expected class_names with a tf.data.Dataset alone"):
        of.train("digits", "digits", run=tmp_path, class_names=["a"])
