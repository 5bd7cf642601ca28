"""COCO's files, written here by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.evaluation.inspection import inspect
from training.sources import open_source
from training.sources.checks import Kind

CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}, {"id": 44, "name": "bottle"}]


def write(root: Path, name: str, annotations: list[dict], stems=("a", "b"), **changes) -> Path:
    """Write images of 40x20 pixels and a file of annotations; return its path."""
    (root / "images").mkdir(exist_ok=True)
    listed = []
    for number, stem in enumerate(stems):
        Image.new("RGB", (40, 20)).save(root / "images" / f"{stem}.jpg")
        listed.append({"id": 100 - number, "file_name": f"{stem}.jpg", "width": 40, "height": 20})
    file = root / f"{name}.json"
    content = {"info": {}, "images": listed, "annotations": annotations, "categories": CATEGORIES, **changes}
    file.write_text(json.dumps(content))
    return file


def thing(image: int, category: int, bbox, **more) -> dict:
    return {"image_id": image, "category_id": category, "bbox": bbox, "segmentation": [[1, 2, 3, 4]], **more}


def opened(file: Path, report=None):
    return open_source(f"coco:{file.parent / 'images'}:{file}", report)


def records(source, split="train") -> dict:
    return {record.image_id: record for record in source.records(split)}


def test_boxes_become_normalised_yxyx_and_ids_labels(tmp_path):
    file = write(
        tmp_path, "x", [thing(99, 90, [4, 2, 8, 10]), thing(100, 3, [0, 0, 40, 20]), thing(99, 44, [0, 5, 1, 5])]
    )
    source = opened(file)
    assert source.class_names == ("car", "bottle", "toothbrush")  # by rising id
    found = records(source)
    np.testing.assert_allclose(found["b.jpg"].boxes, [[0.1, 0.1, 0.6, 0.3], [0.25, 0, 0.5, 0.025]], rtol=1e-6)
    assert found["b.jpg"].labels.tolist() == [2, 1] and found["a.jpg"].labels.tolist() == [0]
    assert found["a.jpg"].image_bytes == (tmp_path / "images" / "a.jpg").read_bytes()


def test_a_crowd_is_difficult_and_an_image_without_objects_a_record(tmp_path):
    file = write(tmp_path, "x", [thing(100, 3, [0, 0, 9, 9], iscrowd=1), thing(100, 3, [0, 0, 9, 9], iscrowd=0)])
    found = records(opened(file))
    assert found["a.jpg"].difficult.tolist() == found["a.jpg"].crowd.tolist() == [True, False]
    assert len(found["b.jpg"].labels) == 0


def test_what_is_wrong_is_reported_and_left_out(tmp_path):
    bad = [
        thing(100, 3, [5, 5, 0, 9]),
        thing(100, 7, [5, 5, 9, 9]),
        thing(100, 3, None),
        thing(100, 3, [1, 2, 3]),
        thing(5, 3, [1, 1, 2, 2]),
        thing(100, 3, [1, 1, 2, 2]),
    ]
    file = write(tmp_path, "x", bad)
    (tmp_path / "images" / "b.jpg").unlink()
    findings = []
    found = records(opened(file, findings.append))
    assert list(found) == ["a.jpg"] and found["a.jpg"].labels.tolist() == [0]
    assert {(finding.kind, finding.name) for finding in findings} == {
        (Kind.NO_AREA, "a.jpg"),
        (Kind.UNKNOWN_CLASS, "a.jpg"),
        (Kind.NO_NUMBERS, "a.jpg"),
        (Kind.MISSING_IMAGE, "5"),
        (Kind.MISSING_IMAGE, "b.jpg"),
    }


GOOD = {"id": 1, "file_name": "a.jpg", "width": 40, "height": 20}


@pytest.mark.parametrize(
    ("images", "annotations", "named"),
    [
        ([{"id": 2, "width": 40, "height": 20}], [thing(2, 3, [0, 0, 9, 9])], "images[1]"),
        ([{"file_name": "b.jpg"}], [], "b.jpg"),
        ([{**GOOD, "id": [2], "file_name": "b.jpg"}], [], "b.jpg"),
        ([{**GOOD, "id": 2, "file_name": "b.jpg", "width": "wide"}], [thing(2, 3, [0, 0, 9, 9])], "b.jpg"),
        ([{**GOOD, "id": 2, "file_name": "b.jpg", "height": float("nan")}], [], "b.jpg"),
        ([None], [], "images[1]"),
        ([], [{"category_id": 3, "bbox": [0, 0, 9, 9]}], "annotations[1]"),
        ([], [{"image_id": 1, "bbox": [0, 0, 9, 9]}], "annotations[1]"),
        ([], ["none"], "annotations[1]"),
    ],
)
def test_a_bad_entry_is_reported_and_skipped_and_the_rest_used(tmp_path, images, annotations, named):
    things = [thing(1, 3, [0, 0, 9, 9]), *annotations]
    findings = []
    found = records(opened(write(tmp_path, "x", things, images=[GOOD, *images]), findings.append))
    assert {name: record.labels.tolist() for name, record in found.items()} == {"a.jpg": [0]}
    assert [(finding.kind, finding.name) for finding in findings] == [(Kind.BAD_ANNOTATION, named)]


def test_images_that_share_an_id_are_reported_and_skipped(tmp_path):
    images = [{**GOOD, "file_name": "b.jpg"}, {**GOOD, "id": 2}, {**GOOD, "file_name": "c.jpg"}]
    things = [thing(1, 3, [0, 0, 9, 9]), thing(2, 44, [0, 0, 9, 9])]
    findings = []
    found = records(opened(write(tmp_path, "x", things, images=images), findings.append))
    assert {name: record.labels.tolist() for name, record in found.items()} == {"a.jpg": [1]}
    assert [(finding.kind, finding.name) for finding in findings] == [
        (Kind.BAD_ANNOTATION, "b.jpg"),
        (Kind.BAD_ANNOTATION, "c.jpg"),
    ]
    assert all("2 images have the id 1" in finding.detail for finding in findings)


def test_what_a_file_has_wrong_is_found_in_its_split_and_in_no_other(tmp_path):
    for split, owner in (("train", 5), ("val", 100)):  # there is no image 5
        write(tmp_path, split, [thing(owner, 3, [0, 0, 9, 9]), thing(100, 3, [0, 0, 9, 9])])
    (tmp_path / "images").rename(tmp_path / "train")
    (tmp_path / "val").symlink_to(tmp_path / "train")
    spec = f"coco:{tmp_path}/{{split}}:{tmp_path}/{{split}}.json"
    for splits, missing in ((None, ["train"]), (["val"], [])):
        totals = inspect(lambda report: open_source(spec, report), splits).totals
        assert [split for split, kind in totals if kind is Kind.MISSING_IMAGE] == missing


def test_a_files_name_tells_its_split(tmp_path):
    for name, split in (("instances_val2017", "val"), ("instances_train2017", "train"), ("annotations", "train")):
        assert opened(write(tmp_path, name, [])).splits == (split,)


def test_a_hole_in_both_parts_opens_every_split_there_is(tmp_path):
    for split in ("train", "val"):
        (tmp_path / f"{split}2017").mkdir()
        (tmp_path / split).mkdir()
        file = write(tmp_path / split, f"instances_{split}2017", [thing(100, 44, [0, 0, 9, 9])], stems=[split])
        file.rename(tmp_path / file.name)
        (tmp_path / split / "images" / f"{split}.jpg").rename(tmp_path / f"{split}2017" / f"{split}.jpg")
    source = open_source(f"coco:{tmp_path}/{{split}}2017:{tmp_path}/instances_{{split}}2017.json")
    assert source.splits == ("train", "val")
    assert [list(records(source, split)) for split in source.splits] == [["train.jpg"], ["val.jpg"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": []}, r"^expected categories in the annotations of coco:[^\n]*; there are none$"),
        ({"images": [{"file_name": "a.jpg"}]}, r"^expected images, annotations and categories in [^\n]*'id'[^\n]*$"),
        ({"images": {"a": 1}}, r"^expected images, annotations and categories in '[^\n]*$"),
        (
            {"categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]},
            r"^[^\n]*categories that share an id[^\n]*$",
        ),
        ({"images": None}, r"^expected images, annotations and categories in '[^\n]*$"),
    ],
)
def test_another_file_is_one_line(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        _ = opened(write(tmp_path, "x", [], **changes)).class_names


@pytest.mark.parametrize("rest", ["images", "images:", "images:nothing.json", "{split}:x.json", "{split}:{split}.json"])
def test_the_wrong_form_is_one_line(tmp_path, rest, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^expected [^\n]*$"):
        open_source(f"coco:{rest}")
