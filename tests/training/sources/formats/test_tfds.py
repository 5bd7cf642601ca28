"""TensorFlow Datasets, mocked: nothing is downloaded."""

import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from training.sources import open_source
from training.sources.checks import Kind
from training.sources.formats import tfds as module


def encoded(size=(40, 20), orientation: int = 1) -> bytes:
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(stream, "JPEG", exif=exif)
    return stream.getvalue()


def test_imagenet_has_classes_and_file_names(mocked):
    mocked("imagenet2012")
    source = open_source("tfds:imagenet2012")
    assert len(source.class_names) == 1000 and source.class_names[0] == "n01440764"
    assert source.splits == ("train", "val") and not source.boxed
    one, two = source.records("train")
    assert one.boxed.tolist() == [False] and 0 <= one.labels[0] < 1000
    assert one.image_id != two.image_id and tf.io.decode_image(one.image_bytes).shape[-1] == 3
    assert [r.image_id for r in source.records("train", 1)] == [one.image_id]


def test_any_set_of_image_and_label_opens(mocked):
    mocked("mnist")
    source = open_source("tfds:mnist")
    assert source.class_names == tuple("0123456789")
    assert [record.image_id[-3:] for record in source.records("val")] == ["__0", "__1"]  # tfds's own


OBJECTS = {
    "label": np.array([6, 14], np.int64),  # car, person
    "bbox": np.array([[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1]], np.float32),
    "pose": np.array([0, 1], np.int64),
    "is_truncated": np.array([True, False]),
    "is_difficult": np.array([False, True]),
}


def test_vocs_objects_have_boxes_and_flags(mocked):
    mocked("voc/2007", [{"image": encoded(), "image/filename": b"7.jpg", "objects": OBJECTS}])
    source = open_source("tfds:voc/2007")
    assert source.boxed and source.class_names[14] == "person"
    (record,) = source.records("val")
    assert record.image_id == "7.jpg" and record.labels.tolist() == [6, 14]
    np.testing.assert_allclose(record.boxes, OBJECTS["bbox"], rtol=1e-6)
    assert record.truncated.tolist() == [True, False] and record.difficult.tolist() == [False, True]
    assert not record.crowd.any()


def test_cocos_crowds_are_difficult_and_bad_boxes_left_out(mocked):
    boxes = np.array([[0.1, 0.2, 0.5, 0.6], [0.5, 0.5, 0.5, 0.7]], np.float32)
    objects = {"label": np.array([3, 5], np.int64), "bbox": boxes, "is_crowd": np.array([True, False])}
    good = {"image": encoded(), "image/filename": b"1.jpg", "objects": objects}
    mocked("coco/2017", [good, {**good, "image": b"no image", "image/filename": b"2.jpg"}])
    found = []
    (record,) = open_source("tfds:coco/2017", found.append).records("train")
    assert record.labels.tolist() == [3] and record.difficult.tolist() == record.crowd.tolist() == [True]
    assert [(finding.kind, finding.name) for finding in found] == [
        (Kind.NO_AREA, "1.jpg"),
        (Kind.UNREADABLE, "2.jpg"),
    ]


def test_open_images_groups_are_crowds_and_what_is_unknown_is_not_so(mocked):
    boxes = np.array([[0.1, 0.2, 0.5, 0.6], [0.5, 0.5, 0.9, 0.7]], np.float32)
    flags = {"is_group_of": np.array([1, 0], np.int8), "is_occluded": np.array([-1, 1], np.int8)}
    objects = {"label": np.array([3, 5], np.int64), "bbox": boxes, **flags}
    mocked("coco/2017", [{"image": encoded(), "image/filename": b"1.jpg", "objects": objects}])
    (record,) = open_source("tfds:coco/2017").records("train")
    assert record.crowd.tolist() == record.difficult.tolist() == [True, False]
    assert record.occluded.tolist() == [False, True]


def test_objects_on_an_image_that_is_shown_turned_are_skipped_and_said_so(mocked):
    mocked("voc/2007", [{"image": encoded(orientation=6), "image/filename": b"7.jpg", "objects": OBJECTS}])
    found = []
    assert not list(open_source("tfds:voc/2007", found.append).records("val"))
    assert [(finding.kind, finding.name) for finding in found] == [(Kind.AS_STORED, "7.jpg")]


XML = """<annotation><size><width>400</width><height>200</height></size><object><name>n01440764</name><bndbox>
<xmin>40</xmin><ymin>20</ymin><xmax>200</xmax><ymax>200</ymax></bndbox></object></annotation>"""


@pytest.mark.parametrize("place", ["n01440764/n01440764_1", "train/n01440764/n01440764_1", "n01440764_1"])
def test_boxes_from_a_folder_of_xml_are_joined_to_imagenet(mocked, tmp_path, place):
    names = (b"n01440764_1.JPEG", b"n01440764_2.JPEG")
    mocked("imagenet2012", [{"image": encoded(), "label": np.int64(0), "file_name": name} for name in names])
    path = tmp_path / "boxes" / f"{place}.xml"
    path.parent.mkdir(parents=True)
    path.write_text(XML)
    source = open_source(f"tfds:imagenet2012+boxes={tmp_path / 'boxes'}")
    assert source.boxed
    boxed, bare = source.records("train")
    np.testing.assert_allclose(boxed.boxes, [[0.1, 0.1, 1, 0.5]], rtol=1e-6)  # drawn on the image ten times as large
    assert boxed.boxed.tolist() == [True] and bare.boxed.tolist() == [False] and bare.labels.tolist() == [0]
    path.write_text(XML[:99])
    assert [record.image_id for record in source.records("train")] == ["n01440764_2.JPEG"]  # the other is skipped


@pytest.mark.parametrize("spec", ["imagenet2012+boxes=", "imagenet2012+boxes=/nowhere", "mnist+boxes=."])
def test_boxes_that_cannot_be_joined_are_one_line(mocked, spec):
    mocked(spec.partition("+")[0])
    with pytest.raises(ValueError, match=r"^expected [^\n]*boxes[^\n]*$"):
        open_source(f"tfds:{spec}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_set", "expected a set of TensorFlow Datasets; got 'tfds:no_such_set': "),
        ("voc/1066", "expected a set of TensorFlow Datasets; got 'tfds:voc/1066': "),
        ("imdb_reviews", "expected image and label or objects in 'tfds:imdb_reviews'; it has label, text"),
    ],
)
def test_a_set_of_another_kind_is_one_line(mocked, spec, message):
    mocked("mnist")  # so that nothing is downloaded
    with pytest.raises(ValueError) as caught:
        open_source(f"tfds:{spec}")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_archives_of_ones_own_download_are_asked_for_in_one_line(tmp_path, monkeypatch):
    found = tfds.builder("imagenet2012", data_dir=tmp_path)
    monkeypatch.setattr(tfds, "builder", lambda name: found)
    with pytest.raises(
        ValueError, match=r"^expected archives of your own download in '[^\n]*ILSVRC2012_img_[^\n]*$"
    ) as caught:
        open_source("tfds:imagenet2012")
    assert str(Path(tmp_path) / "downloads" / "manual") in str(caught.value)


def test_a_set_that_was_prepared_is_read_from_its_files(tmp_path, monkeypatch):
    class Mini(tfds.core.GeneratorBasedBuilder):
        """Two images, made here."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["cat", "dog"])}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"validation": self._generate_examples()}

        def _generate_examples(self):
            for label in (0, 1):
                yield label, {"image": io.BytesIO(encoded((8 + label, 8))), "label": label}

    found = Mini(data_dir=tmp_path)
    monkeypatch.setattr(tfds, "builder", lambda name: found)
    source = module.TfdsSet("mini", print)
    assert source.splits == ("val",) and source.class_names == ("cat", "dog")
    first = {record.image_id: record for record in source.records("val")}
    assert len(first) == 2 and {record.image_bytes for record in first.values()} == {encoded((8, 8)), encoded((9, 8))}
    assert [record.image_id for record in source.records("val")] == list(first)


def test_a_set_of_one_split_has_a_part_held_out(mocked):
    noise = np.random.default_rng(0).integers(0, 256, (10, 28, 28, 1), np.uint8)
    rows = [{"image": tf.io.encode_png(each).numpy(), "label": 3, "tfds_id": f"{i}"} for i, each in enumerate(noise)]
    mocked("mnist", rows, ("train",))
    source = open_source("tfds:mnist")
    ids = {split: [record.image_id for record in source.records(split)] for split in source.splits}
    assert len(ids["val"]) == 2 and sorted(ids["train"] + ids["val"]) == [str(i) for i in range(10)]
