"""Image folders, with and without splits."""

import logging
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from training.evaluation.inspection import inspect
from training.sources import open_source
from training.sources.checks import Kind


def write(root: Path, *paths: str) -> None:
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + number, 8)).save(root / path)


def not_used(root: Path) -> dict[str, list[str]]:
    """Inspect the folder; return the names of what is not used, by split."""
    found = inspect(lambda report: open_source(f"folder:{root}", report))
    return {split: [one.name for one in found.findings[split, Kind.NOT_TAKEN]] for split in found.counts}


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


def test_a_split_within_a_folder_of_its_name_is_that_split(tmp_path):
    """As in Kaggle's archives, which are unpacked into folders of their names."""
    write(
        tmp_path, *(f"{name}/{name}/{pet}/1.jpg" for name in ("training_set", "test_set") for pet in ("cats", "dogs"))
    )
    source = open_source(f"folder:{tmp_path}")
    assert source.splits == ("train", "test") and source.class_names == ("cats", "dogs")
    assert not_used(tmp_path) == {"train": [], "test": []}


def test_a_folder_of_images_in_another_split_is_no_class(tmp_path):
    """Tiny ImageNet's: of validation there are images without a folder per class, and of the test alike."""
    write(tmp_path, "train/n1/images/1.jpg", "train/n2/images/2.jpg", "val/images/3.jpg", "test/images/4.jpg")
    source = open_source(f"folder:{tmp_path}")
    assert source.class_names == ("n1", "n2") and "val" not in source.undivided.splits
    assert not_used(tmp_path)["train"] == ["images"]


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


def test_splits_are_named_in_any_case_and_of_two_the_lower_is_taken(tmp_path):
    write(tmp_path, "Train/dog/1.jpg", "VAL/dog/2.jpg")
    source = open_source(f"folder:{tmp_path}")
    assert source.splits == ("train", "val") and source.class_names == ("dog",)
    assert [record.image_id for record in source.records("train")] == ["Train/dog/1.jpg"]
    write(tmp_path, "train/cat/3.jpg")
    assert not_used(tmp_path) == {"train": ["Train"], "val": []}
    assert open_source(f"folder:{tmp_path}").class_names == ("cat", "dog")


def test_a_class_taken_for_a_split_does_not_hide_the_others(tmp_path, caplog):
    write(tmp_path, "train/steam/1.jpg", "train/2.jpg", "bus/3.jpg", "car/old/4.jpg")  # vehicles
    assert not_used(tmp_path) == {"train": ["bus", "car", "train"]}
    with caplog.at_level(logging.WARNING):
        source = open_source(f"folder:{tmp_path}")
        for _ in range(2):
            list(source.records("train"))
    assert len(caplog.messages) == 3
    assert caplog.messages[0].startswith("skipped bus: file or folder not used: beside 'train', taken for splits; ")


def test_what_may_be_an_image_and_is_not_used_is_reported(tmp_path):
    write(tmp_path, "cat/1.jpg", "cat/deeper/2.TIF")
    for name in ("bare", "3.psd", "notes.txt", "3.JSON", ".hidden", "Thumbs.db"):
        (tmp_path / "cat" / name).write_text("")
    (tmp_path / "cat" / "round").symlink_to(tmp_path / "cat")
    (tmp_path / "4.jpg").touch()  # in no class
    assert not_used(tmp_path) == {"train": [str(tmp_path), "cat/round", "cat/3.psd", "cat/bare"]}


def test_a_folder_that_cannot_be_read_is_reported(tmp_path, monkeypatch):
    write(tmp_path, "cat/1.jpg", "cat/locked/2.jpg")
    scan = os.scandir

    def refuse(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)  # no mode keeps root out
    assert not_used(tmp_path) == {"train": ["cat/locked"]}


def test_names_that_are_no_text_are_refused_of_classes_and_reported_of_files(tmp_path):
    write(tmp_path, "cat/1.jpg")
    shutil.copy(tmp_path / "cat" / "1.jpg", os.fsencode(tmp_path) + b"/cat/caf\xe9.jpg")
    assert not_used(tmp_path) == {"train": [r"cat/caf\xe9.jpg"]}
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    shutil.copy(tmp_path / "cat" / "1.jpg", os.fsencode(tmp_path) + b"/caf\xe9/2.jpg")
    with pytest.raises(ValueError, match=r"^expected [^\n]* in UTF-8; got b'caf\\xe9': rename it$"):
        open_source(f"folder:{tmp_path}")


def test_a_folder_without_folders_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"^expected a folder with a folder per class; '.*' has no folders[^\n]*$"):
        open_source(f"folder:{tmp_path}")
