"""What a new run takes over from another."""

import json
from dataclasses import replace

import numpy as np
import pytest
from small_run import RECIPE
from small_source import few_digits

from overfeat_tf.models.model import CONFIG, Model
from overfeat_tf.network.convnet import build
from overfeat_tf.network.presets import PRESETS
from training.fit import train as module
from training.fit.train import train
from training.fit.transfer import start_from

TEN = tuple("0123456789")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that classifies digits, as `overfeat import-weights` leaves one."""
    folder = tmp_path_factory.mktemp("runs") / "old"
    model = Model(build("tiny", 10), TEN, tasks=("classification",))
    model.save_weights(folder / "weights")
    (folder / CONFIG).write_text(json.dumps({"model": model.config(), "training": {}}))
    return folder, model


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a.get_weights(), b.get_weights(), strict=True))


def test_of_the_same_classes_everything_is_taken_and_counts_as_done(run):
    folder, old = run
    new = start_from(Model(build("tiny", 10), TEN, tasks=()), folder)
    assert new.tasks == ("classification",)
    assert same(new.network.features, old.network.features) and same(new.network.classifier, old.network.classifier)


def test_of_other_classes_all_but_the_last_layer_is_taken(run, caplog):
    folder, old = run
    caplog.set_level("INFO")
    new = start_from(Model(build("tiny", 3), ("a", "b", "c"), tasks=()), folder)
    assert new.tasks == () and same(new.network.features, old.network.features)
    *hidden, kernel, bias = new.network.classifier.get_weights()
    assert all(map(np.array_equal, hidden, old.network.classifier.get_weights()))
    assert kernel.shape[-1] == 3 and kernel.any() and not bias.any()
    assert "these layers start afresh: scores" in caplog.text


@pytest.mark.parametrize(
    ("box_form", "done"), [("edges", ("classification", "localization")), ("center_size", ("classification",))]
)
def test_boxes_of_another_form_are_learnt_afresh_and_classes_are_not(box_form, done, tmp_path):
    old = Model(build("tiny", 10), TEN, tasks=("classification", "localization"))
    assert old.network.box_form == "edges" and old.network.regressor
    old.save_weights(tmp_path / "weights")
    (tmp_path / CONFIG).write_text(json.dumps({"model": old.config(), "training": {}}))
    new = start_from(Model(build("tiny", 10, box_form=box_form), TEN, tasks=()), tmp_path)
    assert new.tasks == done and same(new.network.classifier, old.network.classifier)
    assert same(new.network.regressor, old.network.regressor) == (box_form == "edges")


def test_heads_of_other_depths_start_afresh_where_they_differ(run, caplog):
    deeper = replace(PRESETS["tiny"], full=(128, 128, 16))
    with caplog.at_level("INFO"):
        model = start_from(Model(build(deeper, 10), TEN, tasks=()), run[0])
    assert "full7" in caplog.text and model.tasks == ()


def test_other_features_are_refused_in_one_line(run):
    message = r"^expected a run with the features of 'small' to start from; '.*' has those of 'tiny': choose [^\n]*$"
    with pytest.raises(ValueError, match=message):
        start_from(Model(build("small", 3), ("a", "b", "c"), tasks=()), run[0])


def test_a_run_taken_up_needs_the_one_it_started_from_no_more(run, tmp_path, monkeypatch):
    folder, old = run
    monkeypatch.setattr(module, "_fit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # in localization: classification is done
        source = few_digits(2, 1)
        train(RECIPE, source, tmp_path / "new", start=folder)
    monkeypatch.setattr(module, "_fit", lambda *_: ({}, {}))
    model = train(RECIPE, source, tmp_path / "new", ["localization"]).model
    assert model.tasks == ("classification", "localization")
    assert json.loads((tmp_path / "new" / CONFIG).read_text())["started_from"] == str(folder)
    assert same(model.network.features, old.network.features) and same(model.network.classifier, old.network.classifier)


def test_a_run_that_is_not_there_is_said_before_a_folder_is_made(tmp_path):
    with pytest.raises(ValueError, match="expected the folder of a run"):
        train(RECIPE, few_digits(4), tmp_path / "run", start=tmp_path / "none")
    assert not (tmp_path / "run").exists()
