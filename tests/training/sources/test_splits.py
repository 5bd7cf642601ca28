"""A set of one list is divided, always alike, with near-duplicates on one side; and what a run has stored holds."""

import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_source import few_digits

from overfeat_tf.models.model import CONFIG, SPLIT
from training.sources import open_source
from training.sources.record import count_images
from training.sources.splits import Divided, _components, settle, split_of, store


def photograph(seed: int, size=(96, 80)) -> Image.Image:
    """Draw a smooth picture, each seed another."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def write(root: Path, images: dict[str, Image.Image], **options) -> str:
    for name, picture in images.items():
        (root / "cat").mkdir(parents=True, exist_ok=True)
        picture.save(root / "cat" / name, **options)
    return f"folder:{root}"


def ids(source, split: str) -> set[str]:
    return {record.image_id.removeprefix("cat/") for record in source.records(split)}


def test_a_part_is_held_out_always_the_same_and_one_line_says_so(tmp_path, caplog):
    spec = write(tmp_path, {f"{i:02}.jpg": photograph(i) for i in range(40)})
    with caplog.at_level(logging.INFO):
        source = open_source(spec)
        assert source.splits == ("train", "val")
    assert caplog.messages == [
        f"{spec} has one list of images: 6 of 40 (15 %) are held out as split 'val', by seed 0, "
        "near-duplicates on one side; --split all means all of them"
    ]
    train, val = ids(source, "train"), ids(source, "val")
    assert len(val) == 6 and len(train | val) == 40 and not train & val
    assert ids(open_source(spec), "val") == val
    assert len(list(source.records("val", 2))) == 2 and ids(source, "all") == train | val


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 40))
def test_what_shares_a_key_is_together(seed, count):
    """An oracle: neighbours are visited one after the other."""
    rng = np.random.default_rng(seed)
    keys = [rng.integers(0, count, count) for _ in range(3)]
    group = np.full(count, -1)
    for start in range(count):
        waiting = [start] if group[start] < 0 else []
        while waiting:
            one = waiting.pop()
            if group[one] < 0:
                group[one] = start
                waiting += [other for other in range(count) if any(key[other] == key[one] for key in keys)]
    np.testing.assert_array_equal(_components(keys), group)


def variants(i: int) -> dict[str, bytes]:
    """Encode a picture as it is, worse, smaller, brighter, mirrored and gray."""
    picture = photograph(i)
    changed = {
        "a": picture,
        "b": picture.resize((60, 50)),
        "c": picture.point(lambda value: min(255, int(value * 1.2))),
        "d": picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "e": picture.convert("L"),
    }
    found = {}
    for name, each in changed.items():
        stream = io.BytesIO()
        each.save(stream, "JPEG", quality=60)
        found[name] = stream.getvalue()
    return found


def test_near_duplicates_are_on_one_side(tmp_path):
    (tmp_path / "cat").mkdir()
    for i in range(20):
        for name, data in variants(i).items():
            (tmp_path / "cat" / f"{name}{i}.jpg").write_bytes(data)
        for copy in range(2):  # of other content, as after a crop
            photograph(1000 + 2 * i + copy).save(tmp_path / "cat" / f"IMG_{i}_jpg.rf.{copy:032x}.jpg")
    source = open_source(f"folder:{tmp_path}")
    val = ids(source, "val")
    originals = [name.split(".rf.")[0] if ".rf." in name else name[1:] for name in val]
    assert 14 <= len(val) <= 28
    assert {originals.count(name) for name in originals if name.startswith("IMG")} <= {2}
    assert {originals.count(name) for name in originals if not name.startswith("IMG")} == {5}


@pytest.mark.parametrize("images", [4, 12])
def test_where_nothing_can_be_held_out_all_is_train(images, tmp_path):
    pictures = {f"{i}.jpg": photograph(i if images == 4 else 0) for i in range(images)}  # too few, or all alike
    source = open_source(write(tmp_path, pictures))
    assert source.splits == ("train",) and len(ids(source, "train")) == images


def test_a_run_keeps_its_split_when_data_comes_and_goes(tmp_path):
    spec, run = write(tmp_path / "data", {f"{i}.jpg": photograph(i) for i in range(20)}), tmp_path / "run"
    run.mkdir()
    source = settle(open_source(spec), run)
    store(source, run)
    (run / CONFIG).write_text("{}")
    val = ids(source, "val")
    assert json.loads((run / SPLIT).read_text())["val"] == sorted(f"cat/{name}" for name in val)
    write(tmp_path / "data", {f"new{i}.jpg": photograph(100 + i) for i in range(20)})
    for again in (settle(open_source(spec), run), settle(open_source(spec), run, "none")):  # whatever is asked later
        assert ids(again, "val") == val and len(ids(again, "train")) == 40 - len(val)
    (tmp_path / "moved").mkdir()
    (tmp_path / "data").rename(tmp_path / "moved" / "data")
    assert ids(settle(open_source(spec.replace("/data", "/moved/data")), run), "val") == val
    other = open_source(write(tmp_path / "other", {"0.jpg": photograph(0)}))
    assert settle(other, run) is other


def test_a_split_of_a_run_that_did_not_begin_settles_nothing(tmp_path):
    spec, run = write(tmp_path / "data", {f"{i}.jpg": photograph(i) for i in range(20)}), tmp_path / "run"
    run.mkdir()
    store(settle(open_source(spec), run), run)
    assert settle(open_source(spec), run, "none").splits == ("train",)


def test_images_are_counted_without_reading_their_files(tmp_path, monkeypatch):
    source = open_source(write(tmp_path, {f"{i}.png": photograph(i) for i in range(20)}))
    counts = {split: len(ids(source, split)) for split in ("train", "val", "all")}
    monkeypatch.setattr("training.sources.file_source.read_file", lambda *_: pytest.fail("a file was read"))
    assert {split: count_images(source, split, 100) for split in counts} == counts
    assert counts["train"] + counts["val"] == counts["all"] == 20 and counts["val"] > 0
    assert count_images(source, "train", 3) == 3
    assert count_images(few_digits(5, 2), "train", 100) == 5  # in memory: nothing is listed
    with pytest.raises(ValueError, match=r"expected a split of .*, one of train, val, all; got 'test'"):
        count_images(source, "test", 100)


def test_a_run_without_validation_trains_on_all(tmp_path):
    spec = write(tmp_path / "data", {f"{i}.jpg": photograph(i) for i in range(20)})
    source = settle(open_source(spec), tmp_path / "run", "none")
    assert source.splits == ("train",) and len(ids(source, "train")) == 20


def test_a_list_that_is_named_for_validation_or_a_test_is_not_divided(tmp_path):
    for split in ("val", "test"):
        write(tmp_path / split / split, {f"{i}.jpg": photograph(i) for i in range(9)})
        source = open_source(f"folder:{tmp_path / split}")
        assert source.splits == (split,) and not isinstance(source, Divided)


@pytest.mark.parametrize(
    ("name", "split", "of_folder"),
    [
        ("train", "train", "train"),
        ("valid", "val", "val"),
        ("Val2017", "val", "val"),
        ("test_images", "test", "test"),
        ("instances_val2017", "val", None),
        ("raccoon-TEST", "test", None),
        ("trainLabels", "train", "train"),
        ("contest", None, None),
        ("latest", None, None),
        ("trains", None, None),
        ("default", None, None),
    ],
)
def test_a_split_is_told_by_a_word_and_a_folders_by_all_of_its_name(name, split, of_folder):
    assert split_of(name) == split and split_of(name, folder=True) == of_folder
