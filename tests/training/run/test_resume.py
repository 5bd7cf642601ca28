"""A run that is taken up is the one that was begun: its settings, data and classes, and nothing of it gone."""

import json
import re
import shutil
from dataclasses import replace

import pytest
from small_run import RECIPE, SCHEDULE
from small_source import few_digits

from overfeat_tf.cli.main import overfeat
from overfeat_tf.compute.choice import Choice
from training.fit import train as module
from training.fit.train import train
from training.run import resume


@pytest.fixture(scope="module")
def source():
    return few_digits(4, 1)


@pytest.fixture
def begun(source, tmp_path, monkeypatch):
    """The folder of a run whose first stage is done."""
    monkeypatch.setattr(module, "_fit", lambda *_: ({}, {}))
    train(RECIPE, source, tmp_path, ["classification"])
    return tmp_path


@pytest.mark.parametrize(
    "recipe, renamed, differ",
    [
        (replace(RECIPE, seed=1), "small", "seed differ"),
        (
            replace(RECIPE, detection=replace(SCHEDULE, learning_rate=0.1), box_weight=1.0),
            "small",
            "detection.learning_rate, box_weight differ",
        ),
        (
            replace(RECIPE, detection=replace(SCHEDULE, steps=SCHEDULE.steps + 1)),
            "small",
            "detection.steps differ; has the number of images changed?",
        ),
        (RECIPE, "other", "data differ"),
    ],
)
def test_other_settings_are_refused_in_one_line(begun, source, recipe, renamed, differ):
    config = (begun / "config.json").read_text()
    message = f"expected the settings that '{begun}' began with, or another --run; {differ}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        train(recipe, replace(source, name=renamed), begun)
    assert (begun / "config.json").read_text() == config


@pytest.mark.parametrize(
    "data, what",
    [("tf.data", "tf.data"), ("small", "source 'small'"), ("digits", None)],
    ids=["data", "source", "spec"],
)
def test_what_the_command_line_cannot_open_it_is_not_recommended_for(begun, source, data, what):
    config = json.loads((begun / "config.json").read_text())
    config["training"]["data"] = data
    (begun / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"^expected the settings that .*; seed differ$") as refused:
        train(replace(RECIPE, seed=1), replace(source, name=data), begun)
    assert (f", or `overfeat train --run {begun}`, which resumes it as it is;" in str(refused.value)) == (what is None)
    if what is not None:
        message = f"expected overfeat_tf.train(..., run='{begun}') with the {what} that it began with; the command line"
        with pytest.raises(ValueError, match=f"^{re.escape(message)} cannot open it$"):
            train(RECIPE, data, begun)
        command = ["train", "--run", str(begun), "--more-steps", "9"]
        with pytest.raises(ValueError, match=f"^{re.escape(message)} cannot open it$"):
            overfeat(command, standalone_mode=False)


def test_another_tensorflow_is_no_other_setting(begun, source):
    config = json.loads((begun / "config.json").read_text())
    config["training"]["versions"]["tensorflow"] = "2.0"
    (begun / "config.json").write_text(json.dumps(config))
    assert train(RECIPE, source, begun, ["localization"]).model.tasks == ("classification", "localization")


def test_a_run_keeps_the_precision_that_was_chosen_as_it_began(source, tmp_path, monkeypatch):
    chosen, used = iter(("mixed_bfloat16", "float32")), []
    monkeypatch.setattr(resume, "choose_precision", lambda _: Choice(next(chosen), "it is fast"))
    monkeypatch.setattr(module, "_fit", lambda stage, model, recipe, *_: used.append(recipe.precision) or ({}, {}))
    recipe = replace(RECIPE, precision="auto")
    train(recipe, source, tmp_path, ["classification"])
    train(recipe, source, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert used == ["mixed_bfloat16"] * 3 and config["precision"] == "mixed_bfloat16"
    assert config["training"]["precision"] == "auto"


@pytest.mark.parametrize(
    "classes, message",
    [
        (tuple("0123465789"), "number 6 is '5' in the model, '6' in the data"),
        (tuple("012345678"), "expected the model's 10 classes (0, 1, 2, 3, 4...); small has 9 (0, 1, 2, 3, 4...)"),
    ],
)
def test_other_classes_are_refused_in_one_line(begun, source, classes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        train(RECIPE, replace(source, class_names=classes), begun, ["localization"])


def test_weights_that_are_gone_are_missed(begun, source):
    shutil.rmtree(begun / "weights")
    with pytest.raises(ValueError, match=r"^expected '[^']*/weights', left by classification; it is gone: use another"):
        train(RECIPE, source, begun)


def test_a_configuration_of_something_else_is_one_line(begun, source):
    (begun / "config.json").write_text('{"model": {"tasks": []}}')
    with pytest.raises(ValueError, match=r"^expected the configuration of a run in '[^']*config.json'; it is damaged"):
        train(RECIPE, source, begun)
