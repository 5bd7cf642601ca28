"""The command line with classifiers, committees, and other scales, strides, flips and views than a run's own."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from command_line import run
from PIL import Image
from small_classifiers import LABELS

import overfeat_tf as of
from overfeat_tf.arithmetic import suits_this_machine
from overfeat_tf.cli.options import with_changes
from overfeat_tf.loading import load_run
from serving.embedded.server import start


@pytest.fixture(scope="module")
def committee(classifiers, tmp_path_factory) -> Path:
    saved = tmp_path_factory.mktemp("saved") / "both"
    patch = pytest.MonkeyPatch()
    assert run(patch, "export", *classifiers, "--to", saved, "--views", "ten") == 0
    patch.undo()
    return saved


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (9, 11, 3), np.uint8)
        Image.fromarray(np.kron(noise, np.ones((8, 8, 1), np.uint8))).save(folder / f"{number}.png")
    (folder / "bad.jpg").write_bytes(b"no image")
    return folder


def pixels(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])


def predicted(monkeypatch, tmp_path, *arguments):
    """Predict, one image being unreadable; the answers by file name."""
    out, answers = tmp_path / "out", tmp_path / "answers.json"
    assert run(monkeypatch, "predict", *arguments, "--out", out, "--json", answers) == 1
    return {Path(row["file"]).name: row for row in json.loads(answers.read_text())}


def assert_classes(rows, probabilities):
    for number, row in enumerate(probabilities):
        found = rows[f"{number}.png"]
        assert [one["label"] for one in found["classes"]] == [LABELS[i] for i in np.argsort(-row)]
        np.testing.assert_allclose([one["score"] for one in found["classes"]], np.sort(row)[::-1], rtol=1e-3)
    assert "expected JPEG, PNG" in rows["bad.jpg"]["status"] and rows["bad.jpg"]["classes"] == []


def test_a_classifier_predicts_classes_on_pictures(classifiers, pictures, tmp_path, monkeypatch, capsys):
    rows = predicted(monkeypatch, tmp_path, classifiers[0], pictures)
    assert_classes(rows, of.load(classifiers[0]).classify(pixels(pictures))["probs"])
    assert "bad.jpg: expected JPEG, PNG" in capsys.readouterr().err
    with Image.open(rows["0.png"]["picture"]) as picture:
        assert max(picture.size) >= 240
        assert (np.asarray(picture)[:12, :12] == 0).all(axis=-1).any()  # the label's ground


@pytest.mark.parametrize(
    ("chosen", "options"),
    [
        (["--scales", "2,3", "--stride", "coarse", "--flips"], {"scales": (2, 3), "fine": False, "flips": True}),
        (["--views", "centre"], {"views": "centre"}),
    ],
)
def test_options_change_what_is_scanned(chosen, options, classifiers, pictures, tmp_path, monkeypatch):
    model = of.load(classifiers[0])
    expected = model.with_options(**options).classify(pixels(pictures))["probs"]
    assert np.abs(expected - model.classify(pixels(pictures))["probs"]).max() > 0.01
    assert_classes(predicted(monkeypatch, tmp_path, classifiers[0], pictures, *chosen), expected)


def test_several_runs_export_as_a_committee(classifiers, committee, pictures, tmp_path, monkeypatch):
    members = [of.load(folder) for folder in classifiers]
    expected = of.Model.committee(members).with_options(views="ten").classify(pixels(pictures))["probs"]
    assert_classes(predicted(monkeypatch, tmp_path, committee, pictures), expected)
    config = json.loads((committee / "1" / "config.json").read_text())
    assert [member["name"] for member in config["training"]["members"]] == ["run1", "run2"]
    assert config["model"]["options"]["views"] == "ten"


def test_a_served_classifier_answers_alike(committee, pictures, tmp_path, monkeypatch):
    expected = of.load(committee).classify(pixels(pictures))["probs"]
    with start([committee], port=0) as server:
        rows = predicted(monkeypatch, tmp_path, "both", pictures, "--server", server.address)
        assert_classes(rows, expected)
        assert run(monkeypatch, "predict", "both", pictures, "--server", server.address, "--flips") == 2


def test_a_classifier_is_evaluated_without_a_regressor(classifiers, tmp_path):
    from training.evaluate import evaluate
    from training.sources.record import Record

    class Noise:
        name, class_names, splits = "noise", LABELS, ("val",)

        def records(self, split, limit=None):
            for number in range(4):
                image = np.random.default_rng(number).integers(0, 256, (50, 60, 3), np.uint8)
                data = tf.io.encode_png(image).numpy() if number else b"no image"
                yield Record.of_objects(data, str(number), [[0.1, 0.1, 0.9, 0.9]], [number % 3])

    model = of.load(classifiers[0])
    figures = evaluate(model, Noise(), "val", ("classification",), quiet=True)
    images = [np.random.default_rng(n).integers(0, 256, (50, 60, 3), np.uint8) for n in (1, 2, 3)]
    guesses = model.classify(images)["probs"].argmax(axis=1)
    wrong = 1 + int((guesses != np.array([1, 2, 0])).sum())  # the unreadable one has no guess
    assert figures["top1_error"] == wrong / 4 and figures["unreadable"] == 1
    assert set(model.network.parts) == {"features", "classifier"}


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["--scales", "1,9"], "expected scales of 'tiny' from 1 to 7; got [1, 9]"),
        (["--scales", "some"], "expected numbers of scales such as 1,2; got 'some'"),
        (["--stride", "finest"], "'finest' is not one of"),
        (["--views", "twelve"], "'twelve' is not one of"),
    ],
)
def test_options_that_can_not_be_are_refused(chosen, message, classifiers, pictures, monkeypatch, capsys):
    assert run(monkeypatch, "predict", classifiers[0], pictures, *chosen) == 2
    assert message in capsys.readouterr().err


def test_a_savedmodel_keeps_its_own_options(committee, pictures, monkeypatch, capsys):
    assert run(monkeypatch, "predict", committee, pictures, "--flips") == 2
    assert "a SavedModel has those of its export" in capsys.readouterr().err


def test_a_run_is_answered_by_the_arithmetic_that_suits_the_machine_unless_one_is_chosen(classifiers):
    model = load_run(classifiers[0])
    assert with_changes(model, {}).options == replace(model.options, arithmetic=suits_this_machine())
    assert with_changes(model, {"arithmetic": "direct", "flips": True}).options == replace(model.options, flips=True)
