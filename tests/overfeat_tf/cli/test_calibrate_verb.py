"""`overfeat calibrate`: a finished run gets a map, and says so where it was fitted with other options."""

import json
import logging
from dataclasses import replace

import pytest
from command_line import run

from overfeat_tf.cli.options import with_changes
from overfeat_tf.merge.calibration import Calibration, relevant_options
from overfeat_tf.models.loading import load_run
from overfeat_tf.models.model import Model
from overfeat_tf.network.convnet import build

DIGITS = tuple("0123456789")


@pytest.fixture
def finished(tmp_path):
    """A run of an earlier version, without a calibration."""
    model = Model(build("tiny", len(DIGITS), background=True), DIGITS)
    model.save_weights(tmp_path / "run" / "weights")
    config = model.config()
    del config["calibration"]
    (tmp_path / "run" / "config.json").write_text(json.dumps({"model": config, "training": {"name": "before"}}))
    return tmp_path / "run"


def test_a_run_of_before_is_calibrated_for_the_options_that_are_asked_for(finished, monkeypatch, capsys, caplog):
    def fit(model, source, split, images):
        assert (source.name, split, images) == ("digits", "val", 7)
        return Calibration(2.0, 1.0, -1.0, 0.4, options=relevant_options(model.options), images=7, detections=50)

    monkeypatch.setattr("training.evaluation.calibration.calibrate", fit)
    assert load_run(finished).display_threshold == 0.5
    assert run(monkeypatch, "calibrate", finished, "--data", "digits", "--limit", 7, "--scales", "1,2") == 0
    assert "7 images, 50 boxes; display threshold 0.400" in capsys.readouterr().out
    assert json.loads((finished / "config.json").read_text())["training"] == {"name": "before"}
    loaded = load_run(finished)
    assert loaded.calibration.slope == 2.0 and loaded.display_threshold == 0.4
    with caplog.at_level(logging.INFO):
        with_changes(loaded, {"scales": (1, 2)})
        with_changes(loaded, {"scores": "accumulated"})
        assert caplog.messages == []
        with_changes(loaded, {})
    (line,) = caplog.messages
    assert line.startswith("scores were calibrated with other scales: ")


def test_without_objects_the_run_is_left_as_it_is(finished, monkeypatch, capsys):
    before = (finished / "config.json").read_bytes()
    monkeypatch.setattr("training.evaluation.calibration.calibrate", lambda *_: None)
    assert run(monkeypatch, "calibrate", finished, "--data", "digits") == 2
    assert "expected objects with boxes" in capsys.readouterr().err
    config = json.loads(before)
    config["model"] = replace(load_run(finished), tasks=("classification",)).config()
    (finished / "config.json").write_text(json.dumps(config))
    assert run(monkeypatch, "calibrate", finished, "--data", "digits") == 2
    assert "expected a model trained for detection" in capsys.readouterr().err
