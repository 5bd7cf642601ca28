"""Image folders, with and without splits."""

from pathlib import Path

import pytest
from PIL import Image

from training.sources import open_source


def write(root: Path, *paths: str) -> None:
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + number, 8)).save(root / path)


def test_a_folder_a_class(tmp_path):
    write(tmp_path, "dog/1.jpg", "cat/2.png", "cat/deeper/3.JPEG")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    source = open_source(f"folder:{tmp_path}")
    assert source.class_names == ("cat", "dog") and source.splits == ("train",) and not source.boxed
    records = {record.image_id: record for record in source.records("train")}
    assert {name: record.labels.tolist() for name, record in records.items()} == {
        "dog/1.jpg": [1],
        "cat/2.png": [0],
        "cat/deeper/3.JPEG": [0],
    }
    assert all(record.boxed.tolist() == [False] for record in records.values())
    assert records["dog/1.jpg"].image_bytes == (tmp_path / "dog" / "1.jpg").read_bytes()


def test_folders_of_splits_above_share_their_classes(tmp_path):
    write(tmp_path, "train/dog/1.jpg", "train/ant/2.jpg", "val/dog/1.jpg", "val/bee/4.jpg")
    source = open_source(f"folder:{tmp_path}")
    assert source.class_names == ("ant", "bee", "dog") and source.splits == ("train", "val")
    assert {(r.image_id, *r.labels) for r in source.records("val")} == {("val/dog/1.jpg", 2), ("val/bee/4.jpg", 1)}


def test_a_class_may_be_named_as_a_split_is(tmp_path):
    write(tmp_path, "train/1.jpg", "bus/2.jpg")  # vehicles
    source = open_source(f"folder:{tmp_path}")
    assert source.class_names == ("bus", "train") and source.splits == ("train",)


def test_the_order_is_fixed_and_mixed_and_ends_at_the_limit(tmp_path):
    write(tmp_path, *(f"{label}/{number}.bmp" for label in "abcd" for number in range(6)))
    ids = [record.image_id for record in open_source(f"folder:{tmp_path}").records("train")]
    assert len(ids) == 24 and len({name[0] for name in ids[:8]}) > 2
    assert [record.image_id for record in open_source(f"folder:{tmp_path}").records("train", 5)] == ids[:5]


def test_a_file_that_cannot_be_read_is_reported_and_skipped(tmp_path):
    write(tmp_path, "cat/1.jpg")
    (tmp_path / "cat" / "2.jpg").symlink_to(tmp_path / "nowhere.jpg")
    found = []
    assert len(list(open_source(f"folder:{tmp_path}", found.append).records("train"))) == 1
    assert [finding.name for finding in found] == ["cat/2.jpg"] and found[0].kind.action == "skipped"


def test_a_folder_without_folders_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"^expected a folder that has a folder a class; '.*' has no folders$"):
        open_source(f"folder:{tmp_path}")
