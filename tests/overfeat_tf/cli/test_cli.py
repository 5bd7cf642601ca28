"""The command line: exit statuses, one-line messages, pictures and JSON; in this process, by the real entry point."""

import json
import re
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from command_line import run
from PIL import Image

from overfeat_tf.cli import main
from overfeat_tf.cli.predict.outputs import unique_stems
from overfeat_tf.images.files import find_files
from overfeat_tf.models.model import Model
from overfeat_tf.network.convnet import build
from overfeat_tf.options import InferenceOptions
from serving.client.client import Client
from serving.export.footprint import Footprint
from training.recipes import RECIPES


@pytest.fixture(scope="module")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose random network finds something in noise."""
    tf.keras.utils.set_random_seed(3)
    network = build("tiny", 2, background=True)
    last = network.classifier.get_layer("scores")
    last.set_weights([last.get_weights()[0] * 150, last.get_weights()[1]])
    options = InferenceOptions(scales=(1, 2), min_score=0.01, max_windows=40)
    model = Model(network, ("cat", "dog"), options, ("detection",))
    folder = tmp_path_factory.mktemp("run")
    model.save(folder, {"data": "noise"})
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    draw = np.random.default_rng(5)
    folder = tmp_path / "pictures"
    for name, side in (("a/one.png", 60), ("a/two.jpg", 90), ("b/one.png", 70)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        coarse = draw.integers(0, 256, (side // 6, side // 6, 3), dtype=np.uint8)
        Image.fromarray(np.kron(coarse, np.ones((6, 6, 1), np.uint8))).save(folder / name)
    (folder / "bad.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("not looked at")
    return folder


def test_predict_writes_pictures_and_json_and_reports_what_it_cannot_read(
    a_run, pictures, tmp_path, monkeypatch, capsys
):
    out, answers = tmp_path / "out", tmp_path / "answers.json"
    assert run(monkeypatch, "predict", a_run, pictures, "--out", out, "--json", answers) == 1  # one is unreadable
    rows = json.loads(answers.read_text())
    assert [Path(row["file"]).name for row in rows] == ["one.png", "two.jpg", "one.png", "bad.jpg"]
    assert [bool(row["status"]) for row in rows] == [False, False, False, True]
    assert "bad.jpg: expected JPEG, PNG" in capsys.readouterr().err
    for row in rows:
        if not row["status"]:
            with Image.open(row["picture"]) as picture:
                assert max(picture.size) >= 240
    found = [thing for row in rows for thing in row["objects"]]
    assert found and {thing["label"] for thing in found} <= {"cat", "dog"}
    ymin, xmin, ymax, xmax = found[0]["box"]
    assert 0 <= ymin < ymax <= 1 and 0 <= xmin < xmax <= 1


def test_export_then_predict_with_the_savedmodel_is_the_same(a_run, pictures, tmp_path, monkeypatch):
    good = pictures / "a"
    # Measuring starts a process, and has a test of its own.
    taken = Footprint(10**8, 2 * 10**8, 345 * 10**6, 1.0, 2.0, 0.5)
    monkeypatch.setattr("serving.export.footprint.measure", lambda folder: taken if folder.is_dir() else None)
    saved = tmp_path / "saved_models" / "pets"
    monkeypatch.setattr(sys, "argv", ["overfeat", "export", str(a_run), "--to", str(saved)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code and (saved / "1" / "saved_model.pb").is_file()
    card = (saved / "1" / "MODEL_CARD.md").read_text()
    assert "| arithmetic | loaded MB | peak MB |" in card and "this version |" in card and "| 200 | 345 |" in card
    for model, name in ((a_run, "run"), (saved, "saved")):
        assert (
            run(monkeypatch, "predict", model, good, "--out", tmp_path / name, "--json", tmp_path / f"{name}.json") == 0
        )
    live, exported = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("run", "saved"))
    assert any(row["objects"] for row in live)
    for left, right in zip(live, exported, strict=True):
        assert [t["label"] for t in left["objects"]] == [t["label"] for t in right["objects"]]
        boxes = [[t["box"] for t in row["objects"]] for row in (left, right)]
        np.testing.assert_allclose(boxes[0], boxes[1], atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trin"], "did you mean 'train'?"),
        (["train", "digts"], "did you mean 'digits'?"),
        (["train", "digits", "--set", "detection.stepz=3"], "did you mean 'detection.steps'?"),
        (["train", "digits", "--set", "detection.steps=many"], "expected detection.steps to be of type int"),
        (["train", "digits", "--stage", "everything"], "expected stages of classification"),
        (["train", "digits", "--stage", ""], "expected stages of classification, localization, detection; got none"),
        (["train", "voc"], "expected --data SOURCE"),
        (["train", "digits", "--rnu", "x"], "--run"),
        (["train"], "expected a RECIPE (`overfeat train --help` lists them), or --run DIR alone"),
        (["train", "--run", "nowhere"], "'nowhere' has no config.json"),
        (["train", "--run", "nowhere", "--data", "digits"], "expected --run without --data, since the run has its own"),
        (["train", "--run", "nowhere", "--more-steps", "9"], "'nowhere' has no config.json"),
        (["settings", "digts"], "did you mean 'digits'?"),
        (["inspect", "digits", "--views"], "expected --out DIR with --views"),
        (["info", "acurate"], "did you mean 'accurate'?"),
        (["evaluate", "nowhere", "--data", "digits"], "'nowhere'"),
        (["predict", "nowhere", "nothing.jpg"], "'nothing.jpg' matches none"),
        (["export", "nowhere", "--to", "x/y"], "'nowhere'"),
        (["serve", "nowhere", "--port", "0"], "nowhere"),
    ],
)
def test_mistakes_get_one_clear_line_and_status_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert len([line for line in error.splitlines() if line and not line.startswith(("Usage", "Try "))]) == 1


@pytest.mark.parametrize("more", [[], ["--more-steps", 9], ["digits"]])
def test_a_run_that_was_imported_cannot_be_trained(more, a_run, monkeypatch, capsys):
    assert run(monkeypatch, "train", "--run", a_run, *more) == 2
    assert "expected a run that was trained" in capsys.readouterr().err.splitlines()[-1]


def test_the_recipes_and_their_settings_are_listed(monkeypatch, capsys):
    assert run(monkeypatch, "train", "--help") == 0
    listed = capsys.readouterr().out
    assert not [name for name in RECIPES if not re.search(rf"\b{name}\b(?!-)", listed)]
    assert run(monkeypatch, "settings", "voc", "--set", "detection.learning_rate=0.5") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(re.match(r"detection\.learning_rate=0\.5 +Initial learning rate\.$", line) for line in lines)


def test_a_failure_is_status_1(monkeypatch, capsys):
    wait = Client.wait_until_ready
    monkeypatch.setattr(Client, "wait_until_ready", lambda client, seconds: wait(client, 0.5))
    assert run(monkeypatch, "check", "127.0.0.1:1", "--model", "none") == 1
    assert "FAILED" in capsys.readouterr().out


def test_what_tensorflow_cannot_do_is_one_line(monkeypatch, capsys):
    def full(*_, **__):
        raise tf.errors.OutOfRangeError(None, None, "run/weights; File too large")

    monkeypatch.setattr("overfeat_tf.cli.info.table", full)
    assert run(monkeypatch, "info", "tiny") == 1
    assert capsys.readouterr().err == "overfeat: run/weights; File too large\n"


def test_what_a_failure_held_is_gone_before_the_interpreters_own_end(monkeypatch, capsys):
    # A tf.data iterator among it would now and then never end there: a run stopped by a nan hung in one of eight.
    class Held:
        pass

    alive = []

    def fail():
        held = Held()
        held.itself = held  # a cycle, as Keras's models and callbacks are
        alive.append(weakref.ref(held))
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr(sys.modules[main.__module__], "overfeat", fail)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1 and "the loss is nan" in capsys.readouterr().err
    assert ended.value.__context__ is None and alive[0]() is None


@pytest.mark.parametrize(
    ("preset", "figures"), [("accurate", ("144.66 M", "5355.4 M")), ("fast", ("145.92 M", "2801.4 M"))]
)
def test_info_prints_table_4(preset, figures, monkeypatch, capsys):
    assert run(monkeypatch, "info", preset) == 0
    printed = capsys.readouterr().out
    assert all(figure in printed for figure in figures) and "full7" in printed


def test_info_prints_table_5(monkeypatch, capsys):
    assert run(monkeypatch, "info", "accurate") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["5", "425x497", "32x38", "10x12", "6x8", "18x24"] in rows  # without the paper's misprint
    assert ["6", "461x569", "35x44", "11x14", "7x10", "21x30"] in rows


def test_files_are_found_once_and_named_apart(pictures: Path):
    files = find_files([str(pictures), str(pictures / "a" / "*.png"), str(pictures / "a" / "one.png")])
    assert [file.name for file in files] == ["one.png", "two.jpg", "one.png", "bad.jpg"]
    assert len(set(unique_stems(files).values())) == 4
