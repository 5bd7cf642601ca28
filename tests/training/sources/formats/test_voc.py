"""Pascal VOC folders: written here by hand, and the real files beside the checkout where they are there."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.sources import open_source
from training.sources.checks import Log
from training.sources.formats.voc import VocFolder

DATASETS = Path(__file__).resolve().parents[5] / "shared" / "datasets"


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


class Folder:
    """A VOC folder under construction."""

    def __init__(self, root: Path):
        self.root = root
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / part).mkdir(parents=True)
        self.names: list[str] = []

    def image(self, name: str, size=(40, 20), suffix=".jpg", **options) -> None:
        """Write a grey image of `size` = (width, height)."""
        Image.new("RGB", size, "gray").save(self.root / "JPEGImages" / f"{name}{suffix}", **options)

    def xml(self, name: str, *objects: str, size=(40, 20)) -> None:
        text = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>{''.join(objects)}"
        path = self.root / "Annotations" / f"{name}.xml"
        path.write_text(f"<annotation><filename>{name}.jpg</filename>{text}</annotation>")
        self.names.append(name)

    def split(self, name: str, lines: list[str] | None = None) -> None:
        path = self.root / "ImageSets" / "Main" / f"{name}.txt"
        path.write_text("\n".join(self.names if lines is None else lines) + "\n")

    def open(self) -> VocFolder:
        return VocFolder(self.root, Log())

    def records(self, split: str = "train", limit: int | None = None) -> list:
        return list(self.open().records(split, limit))


def thing(name: str, xmin, ymin, xmax, ymax, **flags) -> str:
    box = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    marks = "".join(f"<{key}>{value}</{key}>" for key, value in flags.items())
    return f"<object><name>{name}</name>{marks}<bndbox>{box}</bndbox></object>"


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path / "voc")


def test_boxes_become_normalised_yxyx(folder):
    folder.image("a")
    folder.xml("a", thing("cat", 1, 1, 40, 20), thing("dog", 11, 6, 20, 15), thing("cat", "3.5", 2, 4, "4.0"))
    folder.split("train")
    (record,) = folder.records()
    assert record.image_bytes == (folder.root / "JPEGImages" / "a.jpg").read_bytes() and record.image_id == "a"
    expected = [[0, 0, 1, 1], [5 / 20, 10 / 40, 15 / 20, 20 / 40], [1 / 20, 2.5 / 40, 4 / 20, 4 / 40]]
    np.testing.assert_allclose(record.boxes, expected, rtol=1e-6)
    assert record.labels.tolist() == [0, 1, 0]


def test_flags_are_read_object_by_object(folder):
    folder.image("a")
    first = thing("cat", 1, 1, 9, 9, difficult=1, truncated=0, occluded=1)
    folder.xml("a", first, thing("cat", 1, 1, 9, 9, truncated=" 1 "), thing("cat", 1, 1, 9, 9))
    folder.split("train")
    (record,) = folder.records()
    assert record.difficult.tolist() == [True, False, False]
    assert record.truncated.tolist() == [False, True, False]
    assert record.occluded.tolist() == [True, False, False]


def test_an_image_without_objects_is_a_record(folder):
    folder.image("a")
    folder.xml("a")
    folder.image("b")
    folder.xml("b", thing("cat", 1, 1, 9, 9))
    folder.split("train")
    assert [len(record.labels) for record in folder.records()] == [0, 1]


@pytest.mark.parametrize(
    ("corners", "why"),
    [
        ((5, 5, 5, 9), "box without area: 'dog' yxyx 5 5 9 5 in 40x20"),
        ((5, 5, 9, 5), "box without area: 'dog' yxyx 5 5 5 9 in 40x20"),
        (
            (9, 5, 5, 9),
            "box whose corners are reversed: 'dog' yxyx 5 9 9 5 in 40x20: xmax < xmin: swap them",
        ),
        ((50, 5, 60, 9), "box outside the image: 'dog' yxyx 5 50 9 60 in 40x20"),
        (("", 1, 2, 3), "box without numbers: 'dog' yxyx 1 nan 3 2 in 40x20"),
    ],
)
def test_a_box_that_cannot_be_used_is_left_out_and_said_so(folder, caplog, corners, why):
    folder.image("a")
    folder.xml("a", thing("dog", *corners, difficult=1), thing("cat", 2, 2, 9, 9))
    folder.split("train")
    with caplog.at_level(logging.WARNING):
        (record,) = folder.records()
    assert record.labels.tolist() == [0] and record.difficult.tolist() == [False]
    assert caplog.messages == [f"left out an object of a: {why}"]


def test_a_box_beyond_the_image_is_clipped(folder):
    folder.image("a")
    folder.xml("a", thing("cat", -3, 0, 44, 11))
    folder.split("train")
    np.testing.assert_allclose(folder.records()[0].boxes, [[0, 0, 11 / 20, 1]], rtol=1e-6)


def test_a_missing_image_and_a_missing_annotation_are_skipped_and_said_so(folder, caplog):
    folder.xml("gone", thing("cat", 1, 1, 9, 9))
    folder.image("bare")
    folder.image("good")
    folder.xml("good", thing("cat", 1, 1, 9, 9))
    (folder.root / "Annotations" / "broken.xml").write_text("<annotation>")
    folder.image("broken")
    folder.split("train", ["gone", "bare", "broken", "good"])
    (folder.root / "classes.txt").write_text("cat\n")
    with caplog.at_level(logging.WARNING):
        assert [record.image_id for record in folder.records()] == ["good"]
    assert sorted(": ".join(message.split(": ")[:2]) for message in caplog.messages) == [
        "skipped bare: missing annotation",
        "skipped broken: unreadable annotation",
        "skipped gone: missing image",
    ]


def test_an_annotation_in_an_unknown_encoding_is_skipped_and_said_so(folder, caplog):
    for name in ("odd", "good"):
        folder.image(name)
        folder.xml(name, thing("cat", 1, 1, 9, 9))
    folder.split("train")
    odd = folder.root / "Annotations" / "odd.xml"
    odd.write_text(f'<?xml version="1.0" encoding="foo"?>{odd.read_text()}')
    with caplog.at_level(logging.WARNING):
        assert [record.image_id for record in folder.records()] == ["good"]  # classes are listed of all annotations
    (line,) = caplog.messages
    assert line.startswith("skipped odd: unreadable annotation: ") and line.endswith("unknown encoding: foo")


def test_an_image_that_is_none_is_skipped_and_said_so(folder, caplog):
    (folder.root / "JPEGImages" / "a.jpg").write_bytes(b"<html>not found</html>")
    folder.xml("a", thing("cat", 1, 1, 9, 9))
    folder.split("train")
    with caplog.at_level(logging.WARNING):
        assert folder.records() == []
    (line,) = caplog.messages
    assert line.startswith("skipped a: unreadable image: ")


def test_other_suffixes_are_found(folder):
    for name, suffix in (("a", ".png"), ("b", ".JPG"), ("c", ".webp")):
        folder.image(name, suffix=suffix)
        folder.xml(name, thing("cat", 1, 1, 9, 9))
    folder.split("train")
    assert len(folder.records()) == 3


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_on_a_turned_image_as_stored_are_skipped(folder, caplog, orientation):
    folder.image("a", exif=exif(orientation))
    folder.xml("a", thing("cat", 1, 1, 9, 9), size=(40, 20))  # the file's 40x20, shown as 20x40
    folder.split("train")
    with caplog.at_level(logging.WARNING):
        assert folder.records() == []
    (line,) = caplog.messages
    assert "skipped a: " in line and "EXIF" in line


def test_boxes_on_a_turned_image_as_displayed_are_kept(folder):
    folder.image("a", exif=exif(6))
    folder.xml("a", thing("cat", 1, 1, 20, 40), size=(20, 40))
    folder.split("train")
    np.testing.assert_allclose(folder.records()[0].boxes, [[0, 0, 1, 1]])


@pytest.mark.parametrize("orientation", [0, 1, 2, 9, 65535])
def test_an_orientation_that_turns_nothing_changes_nothing(folder, orientation):
    folder.image("a", exif=exif(orientation))
    folder.xml("a", thing("cat", 1, 1, 40, 20))
    folder.split("train")
    np.testing.assert_allclose(folder.records()[0].boxes, [[0, 0, 1, 1]])


def test_classes_are_listed_or_else_found_and_sorted(folder):
    folder.image("a")
    folder.xml("a", thing("zebra", 1, 1, 9, 9), thing("ant", 1, 1, 9, 9))
    folder.split("train")
    assert folder.open().class_names == ("ant", "zebra")
    assert folder.records()[0].labels.tolist() == [1, 0]
    (folder.root / "classes.txt").write_text("zebra\n\n gnu \nant\n")
    assert folder.open().class_names == ("zebra", "gnu", "ant")
    assert folder.records()[0].labels.tolist() == [0, 2]


def test_a_class_that_is_not_listed_is_left_out_and_said_so(folder, caplog):
    folder.image("a")
    folder.xml("a", thing("cat", 1, 1, 9, 9), thing("yeti", 1, 1, 9, 9))
    folder.split("train")
    (folder.root / "classes.txt").write_text("cat\n")
    with caplog.at_level(logging.WARNING):
        assert folder.records()[0].labels.tolist() == [0]
    assert "yeti" in caplog.text


def test_no_object_anywhere_is_an_error_of_one_line(folder):
    folder.image("a")
    folder.xml("a")
    folder.split("train")
    with pytest.raises(ValueError, match=r"^expected objects in the annotations of .*; there are none$"):
        _ = folder.open().class_names


def test_the_lists_of_single_classes_are_no_splits(folder):
    folder.split("train", ["a"])
    folder.split("trainval", ["a"])
    folder.split("cat_train", ["a  1", "b -1"])
    folder.split("cat_trainval", ["a  1"])
    folder.split("official_train", ["a"])  # a split of its own, whatever its name ends in
    folder.split("train_small", ["a"])
    folder.split("dog_train", [])
    assert folder.open().splits == ("official_train", "train", "train_small", "trainval")


def test_lists_of_other_names_are_the_splits_that_they_name(folder):
    folder.split("train", ["a"])
    folder.split("valid", ["a", "b"])
    folder.split("cat_valid", ["a  1", "b -1"])
    assert folder.open().splits == ("train", "val")
    folder.split("val", ["a"])  # then "valid" is a list of its own
    assert folder.open().splits == ("train", "val", "valid")


def test_a_name_may_have_spaces_and_a_flag_after_it_is_cut_off(folder):
    for name in ("sp ace", "photo 1", "photo 2", "a"):
        folder.image(name)
        folder.xml(name, thing("cat", 1, 1, 9, 9))
    folder.split("train")
    folder.split("cat_train", ["sp ace  1", "a -1"])
    folder.split("my_train", ["photo 1", "sp ace", "photo 2"])  # no class's list
    folder.split("flagged", ["sp ace  1", "photo 1 -1", "photo 1", "a\t0"])
    assert folder.open().splits == ("flagged", "my_train", "train")
    ids = {split: sorted(record.image_id for record in folder.records(split)) for split in folder.open().splits}
    assert ids == {
        "train": sorted(folder.names),
        "my_train": ["photo 1", "photo 2", "sp ace"],
        "flagged": ["a", "photo 1", "sp ace"],
    }


def test_a_class_list_may_name_the_annotations_ids_by_words(folder):
    folder.image("a")
    folder.xml("a", thing("n2", 1, 1, 9, 9), thing("n1", 1, 1, 9, 9), thing("n3", 1, 1, 9, 9))
    folder.split("train")
    (folder.root / "classes.txt").write_text("n1\tgoldfish, Carassius auratus\nn2\tcrane\nn3\tcrane, Grus\n")
    assert folder.open().class_names == ("goldfish", "crane (n2)", "crane (n3)")
    assert folder.records()[0].labels.tolist() == [1, 0, 2]


def test_the_order_is_fixed_and_mixed_and_ends_at_the_limit(folder):
    names = [f"{kind}{number}" for kind in "abc" for number in range(8)]
    for name in names:
        folder.image(name)
        folder.xml(name, thing("cat", 1, 1, 9, 9))
    folder.split("train", [*names, ""])
    ids = [record.image_id for record in folder.records()]
    assert sorted(ids) == names and {name[0] for name in ids[:8]} == set("abc")  # as listed, batches of one kind
    assert [record.image_id for record in folder.records(limit=2)] == ids[:2]


def test_a_record_is_said_to_be_skipped_once_however_often_it_is_read(folder, caplog):
    folder.xml("gone", thing("cat", 1, 1, 9, 9))
    folder.split("train")
    source = folder.open()
    with caplog.at_level(logging.WARNING):
        assert list(source.records("train")) == list(source.records("train")) == []
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("scale", [2, 0.5])
def test_boxes_drawn_on_the_image_at_another_size_are_scaled(folder, scale):
    folder.image("a")
    folder.xml("a", thing("cat", 1, 1, 20 * scale, 20 * scale), size=(40 * scale, 20 * scale))
    folder.split("train")
    np.testing.assert_allclose(folder.records()[0].boxes, [[0, 0, 1, 0.5]])


def test_boxes_drawn_on_an_image_of_another_shape_are_skipped(folder, caplog):
    folder.image("a")
    folder.xml("a", thing("cat", 1, 1, 20, 20), size=(60, 60))
    folder.split("train")
    assert folder.records() == []
    assert "the annotation has 60x60, the image is 40x20" in caplog.text


def test_an_unknown_split_names_those_that_exist(folder):
    folder.split("train", ["a"])
    folder.split("val", ["a"])
    with pytest.raises(ValueError, match=r"^expected a split of voc:.*, one of train, val; got 'test'$"):
        folder.records("test")


def test_a_folder_without_annotations_says_so(folder):
    folder.split("train", ["a"])
    shutil.rmtree(folder.root / "Annotations")
    with pytest.raises(ValueError, match=r"^expected a Pascal VOC folder; '.*' has no XML files of annotations$"):
        folder.open()


def test_without_lists_every_annotation_is_taken(folder):
    folder.image("a")
    folder.xml("a", thing("cat", 1, 1, 9, 9))
    shutil.rmtree(folder.root / "ImageSets")
    assert folder.open().splits == ("train",)
    assert [record.image_id for record in folder.records()] == ["JPEGImages/a.jpg"]


def test_no_folder_at_all_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^expected a Pascal VOC folder; [^\n]*$"):
        VocFolder(tmp_path / "nowhere", Log())


# --- Real files ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (DATASETS / "playing_cards").is_dir(), reason="no playing_cards beside the checkout")
def test_playing_cards_are_read_in_full(caplog):
    source = open_source(f"voc:{DATASETS / 'playing_cards'}")
    assert set(source.class_names) == {"nine", "ten", "jack", "queen", "king", "ace"}
    assert {"train", "val", "official_train", "official_test"} <= set(source.splits)
    records = {split: list(source.records(split)) for split in ("train", "val")}
    assert {split: len(found) for split, found in records.items()} == {"train": 290, "val": 73}
    assert sum(len(record.labels) for found in records.values() for record in found) == 670
    assert caplog.messages == []


@pytest.mark.skipif(not (DATASETS / "bad_input").is_dir(), reason="no bad_input beside the checkout")
def test_bad_input_is_survived(folder, caplog):
    kept = {"BloodImage_00338", "BloodImage_00343", "raccoon-150", "2007_000738"}
    for name in kept:
        for path in (DATASETS / "bad_input").rglob(f"{name}.*"):
            part = {".xml": "Annotations", ".jpg": "JPEGImages"}.get(path.suffix)
            if part:
                shutil.copy(path, folder.root / part)
    # An invalid orientation (65537 as a LONG) turns nothing; a GIF that says .jpg; a file cut short has a good header.
    shutil.copy(DATASETS / "bad_input" / "exif_orientation" / "00103.jpg", folder.root / "JPEGImages")
    folder.xml("00103", thing("cat", 1, 1, 480, 321), size=(480, 321))
    shutil.copy(
        DATASETS / "bad_input" / "gif_among_jpegs" / "imageNotFound.gif", folder.root / "JPEGImages" / "gif.jpg"
    )
    folder.xml("gif", thing("cat", 1, 1, 2, 2), size=(300, 300))
    folder.split("train", sorted(kept | {"00103", "gif", "000000000250"}))
    with caplog.at_level(logging.WARNING):
        records = {record.image_id: record for record in folder.records()}
    assert set(records) == kept | {"00103", "gif"}
    assert len(records["2007_000738"].labels) == 0
    np.testing.assert_allclose(records["00103"].boxes, [[0, 0, 1, 1]])
    left_out = [message for message in caplog.messages if "left out an object of BloodImage_" in message]
    assert len(left_out) == 2 and any("skipped 000000000250: missing" in message for message in caplog.messages)
    for record in records.values():
        assert record.boxes.min(initial=0) >= 0 and record.boxes.max(initial=1) <= 1
        assert (record.boxes[:, 2:] > record.boxes[:, :2]).all()
