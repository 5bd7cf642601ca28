"""A SOURCE that does not fit says what the folder looks like and which does; and that one then opens."""

import re
from pathlib import Path

import pytest
from exports import WRITERS, image, put, records, xml, yolo_lines

from training.sources import open_source


def refused(spec: str) -> str:
    with pytest.raises(ValueError) as caught:
        _ = open_source(spec).class_names
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["ultralytics", "coco_2017", "roboflow_voc", "roboflow_csv", "roboflow_tfrecord"])
def test_a_path_alone_and_another_kind_lead_to_the_source_that_fits(name, tmp_path):
    root = tmp_path / "pets"
    WRITERS[name][0](root)
    for spec in (str(root), f"ilsvrc:{root}"):
        advised = re.search(r"write '?((?:yolo|coco|voc|csv|tfrecord):[^' ]+)", refused(spec))[1]
        if name != "roboflow_csv":  # whose tables are two
            assert open_source(advised).class_names == ("cat", "dog")


def test_folders_of_splits_are_no_classes(tmp_path):
    WRITERS["ultralytics"][0](tmp_path)
    message = refused(f"folder:{tmp_path / 'images'}")
    assert "only folders of splits or parts: train, val; above it, " in message
    assert message.endswith(f"looks like YOLO: write yolo:{tmp_path / 'data.yaml'}")
    for name in ("Train", "test2017"):
        image(tmp_path / "plain" / name, 1)
    assert "only folders of splits or parts: Train, test2017" in refused(f"folder:{tmp_path / 'plain'}")


def test_names_that_differ_by_a_split_are_no_classes(tmp_path):
    for name in ("seg_train", "seg_test", "seg_pred"):
        image(tmp_path / "seg" / name / name / "cat", 1)
    message = refused(f"folder:{tmp_path / 'seg'}")
    assert "has what seem to be splits: seg_test, seg_train: name them train, val and test, or write folder:" in message
    assert open_source(f"folder:{tmp_path / 'seg' / 'seg_train'}").class_names == ("cat",)
    for name in ("dev board", "test board", "train"):
        image(tmp_path / "boards" / name, 1)
    assert open_source(f"folder:{tmp_path / 'boards'}").class_names == ("dev board", "test board", "train")


def test_folders_that_are_parts_of_a_set_or_have_no_images_are_no_classes(tmp_path):
    WRITERS["devkit"][0](tmp_path / "pets")
    message = refused(f"folder:{tmp_path / 'pets' / 'VOCdevkit' / 'VOC2007'}")
    assert "parts: Annotations, ImageSets, JPEGImages; " in message and "write voc:" in message
    for name in ("cat", "dog"):
        image(tmp_path / "plain" / name, 1)
    put(tmp_path / "plain" / "notes" / "read me.md", "")
    findings = []
    source = open_source(f"folder:{tmp_path / 'plain'}", findings.append)
    assert source.class_names == ("cat", "dog") and len(list(source.records("train"))) == 2
    assert [one.name for one in findings] == ["notes"]


def test_annotations_one_level_down_are_found_or_named(tmp_path):
    WRITERS["devkit"][0](tmp_path)
    assert open_source(f"voc:{tmp_path}").splits == ("train", "val")
    (tmp_path / "VOCdevkit" / "VOC2012").symlink_to(tmp_path / "VOCdevkit" / "VOC2007")
    assert re.search(r"has 2: write voc:[^ ]*VOC2007 or voc:[^ ]*VOC2012", refused(f"voc:{tmp_path}"))
    WRITERS["coco_2017"][0](tmp_path / "coco" / "data")
    assert open_source(f"coco:{tmp_path / 'coco'}").splits == ("train", "val")
    WRITERS["labelimg"][0](tmp_path / "voc" / "data" / "deeper")
    assert open_source(f"voc:{tmp_path / 'voc'}").class_names == ("cat", "dog")


def put_labels(root: Path) -> None:
    image(root / "images", 1)
    put(root / "labels" / "photo 1.txt", yolo_lines(1))


def put_cvat(root: Path) -> None:
    image(root / "images", 1)
    put(root / "annotations.xml", "<?xml version='1.0'?><annotations><version>1.1</version></annotations>")


def put_via(root: Path) -> None:
    image(root, 1)
    put(root / "project.json", '{"_via_settings": {}, "_via_img_metadata": {}}')


def put_labelme(root: Path) -> None:
    image(root, 1)
    put(root / "photo 1.json", '{"version": "5.0.1", "flags": {}, "shapes": [], "imagePath": "photo 1.jpg"}')


def put_supervisely(root: Path) -> None:
    image(root / "ds" / "img", 1)
    put(root / "ds" / "ann" / "photo 1.jpg.json", '{"size": {}, "objects": [{"classTitle": "cat", "points": {}}]}')


def put_table_of_classes(root: Path) -> None:
    image(root / "train", 1)
    put(root / "labels.csv", "id,breed\nphoto 1,beagle\n")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (put_supervisely, "Supervisely's JSON; export it as"),
        (
            put_table_of_classes,
            "labels.csv' is a table without columns of boxes: of classes alone, sort the images into",
        ),
        (lambda root: records(root / "pets.record-00000-of-00002", [1]), "/set/*.record-*'"),
        (lambda root: records(root / "00-192x192.tfrec", [1]), "/set/*.tfrec'"),
        (put_labels, "YOLO without a data.yaml: write one"),
        (put_cvat, "CVAT for images; export it as"),
        (put_via, "a project of VIA; export it as COCO"),
        (put_labelme, "LabelMe's files; convert them"),
        (lambda root: image(root, 1), "has images and no annotations"),
        (lambda root: image(root / "cat", 1), "a folder of images per class: write folder:"),
        (lambda root: put(root / "notes.md", ""), "has nothing that a SOURCE reads"),
        (lambda root: put(root, b"PK"), "is an archive: unpack it"),
    ],
)
def test_what_no_source_reads_is_named(write, words, tmp_path):
    root = tmp_path / ("set.zip" if "archive" in words else "set")
    write(root)
    assert words in refused(f"coco:{root}") and words in refused(str(root))
    assert refused(f"{root}/nowhere").endswith("; there is no such file or folder")


def test_a_place_called_test_among_others_is_no_split(tmp_path):
    for i, name in enumerate(("test", "street", "park") * 2):
        image(tmp_path / name, i)
        put(tmp_path / name / f"photo {i}.xml", xml(i, f"photo {i}.jpg"))
    source = open_source(f"voc:{tmp_path}")
    assert sum(len(list(source.records(split))) for split in source.splits) == 6
