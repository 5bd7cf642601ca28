"""The command line with classifiers, committees, and other scales, strides, flips and views than a run's own."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from command_line import run
from PIL import Image
from small_classifiers import LABELS

import overfeat_tf as of
from overfeat_tf.cli.options import option_name, with_changes
from overfeat_tf.compute.choice import Choice
from overfeat_tf.models.loading import load_run
from serving.embedded.server import start


@pytest.fixture(scope="module", autouse=True)
def unmeasured() -> Iterator[None]:
    """Leave out what a model card says of memory and time, for which an export starts a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.export.exporter.compare", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def committee(classifiers, unmeasured, tmp_path_factory) -> Path:
    saved = tmp_path_factory.mktemp("saved") / "both"
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, "export", *classifiers, "--to", saved, "--views", "ten") == 0
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
        (["--scales", "3", "--scale-fit", "exact"], {"scales": (3,), "scale_fit": "exact"}),
    ],
)
def test_options_change_what_is_scanned(chosen, options, classifiers, pictures, tmp_path, monkeypatch):
    model = of.load(classifiers[0])
    expected = model.with_options(**options).classify(pixels(pictures))["probs"]
    assert np.abs(expected - model.classify(pixels(pictures))["probs"]).max() > 0.01
    assert_classes(predicted(monkeypatch, tmp_path, classifiers[0], pictures, *chosen), expected)


def test_every_option_is_written_into_the_export(classifiers, pictures, tmp_path, monkeypatch):
    chosen = {"top_k": 2, "min_score": 0.1, "max_windows": 7, "merge_threshold": 0.2, "max_detections": 9}
    chosen |= {"scale_fit": "exact", "localize_by": "accumulated", "arithmetic": "direct"}
    given = [part for key, value in chosen.items() for part in (option_name(key), value)]
    assert run(monkeypatch, "export", classifiers[0], "--to", tmp_path / "saved", *given) == 0
    config = json.loads((tmp_path / "saved/1/config.json").read_text())["model"]
    assert config["options"] == {**asdict(load_run(classifiers[0]).options), **chosen, "scales": [1, 2]}
    answer = predicted(monkeypatch, tmp_path, tmp_path / "saved", pictures)["0.png"]
    assert len(answer["classes"]) == 2


@pytest.fixture(scope="module")
def localizer(tmp_path_factory) -> Path:
    """A run trained to localize, without a background class."""
    tf.keras.utils.set_random_seed(5)
    network = of.build("tiny", 3)
    last = network.classifier.layers[-1]
    last.kernel.assign(last.kernel * 150)
    network.regressor.layers[-1].bias.assign([0.2, 0.2, 0.8, 0.8])
    model = of.Model(network, LABELS, of.InferenceOptions(scales=(2,)), ("localization",))
    folder = tmp_path_factory.mktemp("localizer")
    model.save(folder)
    return folder


def test_a_run_that_localizes_detects_where_asked(localizer, pictures, tmp_path, monkeypatch, capsys):
    options = ["--min-score", 0.2, "--max-windows", 50, "--max-detections", 4, "--arithmetic", "direct"]
    model = of.load(localizer).with_options(min_score=0.2, max_windows=50, max_detections=4)
    images = [(pictures / f"{number}.png").read_bytes() for number in range(3)]
    localized, detected = model.localize(images), model.detect(images)
    default = predicted(monkeypatch, tmp_path, localizer, pictures, *options)
    asked = predicted(monkeypatch, tmp_path, localizer, pictures, *options, "--task", "detection", "--stages")
    for number in range(3):
        for rows, answer in ((default, localized), (asked, detected)):
            found = rows[f"{number}.png"]["objects"]
            count = int(answer["num_detections"][number])
            scores = answer["detection_scores"][number, :count]
            np.testing.assert_allclose([one["score"] for one in found], scores, rtol=1e-4)
    assert max(len(row["objects"]) for row in asked.values()) == 4
    assert Path(asked["0.png"]["stages"]).is_file()
    saved = tmp_path / "saved"
    assert run(monkeypatch, "export", localizer, "--to", saved) == 0
    assert not any(name.startswith("detect") for name in of.load(saved)._loaded.signatures)
    assert run(monkeypatch, "predict", saved, pictures, "--task", "detection") == 2
    assert "of localization; got 'detection'" in capsys.readouterr().err


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
    from training.evaluation.evaluate import evaluate
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
        (["--scale-fit", "near"], "'near' is not one of"),
        (["--top-k", 0], "expected top_k to be a whole number, at least 1; got 0"),
        (["--min-score", 2], "expected min_score, a softmax score, to be between 0 and 1; got 2.0"),
        (["--merge-threshold", -1], "expected merge_threshold to be at least 0, and finite; got -1.0"),
        (["--threshold", "nan"], "expected a finite number; got 'nan'"),
        (["--task", "detection"], "expected a task that the model answers, of classification; got 'detection'"),
    ],
)
def test_options_that_can_not_be_are_refused(chosen, message, classifiers, pictures, monkeypatch, capsys):
    assert run(monkeypatch, "predict", classifiers[0], pictures, *chosen) == 2
    assert message in capsys.readouterr().err


def test_a_savedmodel_keeps_its_own_options(committee, pictures, monkeypatch, capsys):
    assert run(monkeypatch, "predict", committee, pictures, "--flips") == 2
    assert "a SavedModel keeps those of its export" in capsys.readouterr().err


def test_a_run_is_answered_by_the_arithmetic_that_is_fastest_here_unless_one_is_chosen(
    classifiers, monkeypatch, caplog
):
    caplog.set_level("INFO")
    model = load_run(classifiers[0])
    monkeypatch.setattr("overfeat_tf.compute.choice.choose_arithmetic", lambda _: Choice("bfloat16", "it is fast"))
    for changes in ({}, {"arithmetic": "auto"}):
        assert with_changes(model, changes).options == replace(model.options, arithmetic="bfloat16")
    assert caplog.messages == ["arithmetic bfloat16: it is fast"] * 2
    assert with_changes(model, {"arithmetic": "direct", "flips": True}).options == replace(model.options, flips=True)
