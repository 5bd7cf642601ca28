"""`overfeat inspect` and `overfeat train --strict`: text, JSON, pictures and exit statuses."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from command_line import run
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """COCO's layout: an image with a box and a bad one, one that is cut short, one of background."""
    images = tmp_path / "images"
    images.mkdir()
    draw = np.random.default_rng(1)
    for name in ("a", "b", "c"):
        Image.fromarray(draw.integers(0, 256, (240, 320, 3), np.uint8)).save(images / f"{name}.jpg")
    (images / "b.jpg").write_bytes((images / "b.jpg").read_bytes()[:5000])
    listed = [{"id": i, "file_name": f"{name}.jpg"} for i, name in enumerate("abc")]
    boxes = ([160, 60, 80, 90], [5, 5, 0, 9])
    content = {
        "images": listed,
        "annotations": [{"image_id": 0, "category_id": 1, "bbox": box} for box in boxes],
        "categories": [{"id": 1, "name": "noise"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def spec(folder: Path) -> str:
    return f"coco:{folder / 'images'}:{folder / 'train.json'}"


def test_what_is_there_is_printed_written_and_drawn(folder, spec, monkeypatch, capsys):
    assert run(monkeypatch, "inspect", spec, "--out", folder / "out", "--json", folder / "found.json") == 0
    printed = capsys.readouterr().out
    assert "faults: 2" in printed and "box without area (left out): 1" in printed and "b.jpg: damaged" in printed
    found = json.loads((folder / "found.json").read_text())
    assert found["splits"]["train"]["images"] == 2 and found["splits"]["train"]["objects"] == 1
    assert {one["kind"]: one["count"] for one in found["findings"]} == {"box without area": 1, "unreadable image": 1}
    drawn = {str(path.relative_to(folder / "out")) for path in (folder / "out").rglob("*.png")}
    assert drawn == {"train.png", "train/a.jpg.png", "train/c.jpg.png", "train/box_without_area/a.jpg.png"}
    with Image.open(folder / "out" / "train" / "a.jpg.png") as picture:
        assert picture.size == (320, 240)
        assert all(picture.getpixel((x, 149)) == (255, 255, 255) for x in range(160, 240))  # the box's lower edge


def test_the_coverage_of_a_pretrained_recipe_needs_no_weights_and_follows_the_settings(
    spec, folder, monkeypatch, capsys
):
    x = pixels = keras.Input((None, None, 3))
    for channels in (4, 4, 4, 8):
        x = keras.layers.Conv2D(channels, 3, 2, "same", activation="relu")(x)
    keras.Model(pixels, x).save(folder / "small.keras")
    settings = ["--set", f"preset={folder / 'small.keras'}", "--set", "weights=not_downloaded.weights.h5"]
    for scales, covered in (("320", "100.0%"), ("80", "0.0%")):
        assert run(monkeypatch, "inspect", spec, "--recipe", "finetune", *settings, "--set", f"scales={scales}") == 0
        printed = capsys.readouterr().out
        assert "`train finetune` cover" in printed
        assert f"{scales}x{scales}: windows find {covered} of 1 objects" in printed


def test_a_long_path_has_a_picture_of_a_shorter_name(tmp_path, monkeypatch):
    deep = "/".join(["f" * 60] * 9)
    for name in ("a.png", "b.png"):
        (tmp_path / deep).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), "red" if name == "a.png" else "blue").save(tmp_path / deep / name)
    images = [{"id": i, "file_name": f"{deep}/{name}"} for i, name in enumerate(("a.png", "b.png"))]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "noise"}]}
    (tmp_path / "val.json").write_text(json.dumps(content))
    assert run(monkeypatch, "inspect", f"coco:{tmp_path}:{tmp_path / 'val.json'}", "--out", tmp_path / "out") == 0
    drawn = [path.name for path in (tmp_path / "out" / "val").glob("*.png")]
    assert len(drawn) == 2 and max(map(len, drawn)) < 255 and all(name.startswith("ffff") for name in drawn)


def test_strict_is_status_1_where_there_are_faults(spec, folder, monkeypatch, capsys):
    assert run(monkeypatch, "inspect", spec, "--strict") == 1
    assert run(monkeypatch, "inspect", "digits", "--split", "val", "--limit", "3", "--strict") == 0
    assert "0" in capsys.readouterr().out
    run_folder = folder / "run"
    assert run(monkeypatch, "train", "digits", "--data", spec, "--run", run_folder, "--strict") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"overfeat: expected data without faults; got 2 in {spec}, the first in train: ")
    assert not run_folder.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "vocc:x"], "did you mean 'voc'?"),
        (["inspect", "digits", "--split", "trainn"], "expected a split of digits, one of train, val, test"),
        (["inspect", "digits", "--strickt"], "--strict"),
        (["train", "digits", "--data", "folder:nowhere"], "there is no folder 'nowhere'"),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_set_of_classes_is_refused_for_boxes_in_one_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (60, 60)).save(tmp_path / "cat" / "1.png")
    assert run(monkeypatch, "train", "digits", "--data", f"folder:{tmp_path}", "--run", tmp_path / "run") == 2
    assert "classes alone: train it with --stage classification" in capsys.readouterr().err
