"""Committees average their members' votes (Table 2), here and when exported."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest

import overfeat_tf as of
from overfeat_tf.models.model import CONFIG, Model
from overfeat_tf.network.presets import PRESETS
from serving.export.exporter import export

LABELS = ("cat", "dog", "eel", "fox")
OPTIONS = of.InferenceOptions(scales=(1, 2))


@pytest.fixture(scope="module")
def members():
    """Two tiny networks and a wider one, a detector among them."""
    found = []
    for seed, background in ((1, False), (2, True), (3, False)):
        keras.utils.set_random_seed(seed)
        preset = replace(PRESETS["tiny"], name=f"tiny{seed}", full=(128 * seed, 64))
        network = of.build(preset, 4, background=background)
        last = network.classifier.layers[-1]
        last.kernel.assign(last.kernel * 60)
        tasks = ("classification", "localization", "detection") if background else ("classification",)
        found.append(Model(network, LABELS, OPTIONS, tasks))
    return found


def picture(height=60, width=75):
    return np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)


def votes(model):
    return np.exp(model.classify(picture())["logits"])


def test_a_committee_votes_as_its_members_on_average(members):
    committee = Model.committee(members)
    each = np.stack([votes(member) for member in members])
    assert np.abs(each[0] - each[1]).max() > 0.05  # they do not agree
    np.testing.assert_allclose(votes(committee), each.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(votes(Model.committee(members[:1])), each[0], rtol=1e-4, atol=1e-5)
    # A committee of committees counts each member once.
    nested = Model.committee([Model.committee(members[:2]), members[2]])
    np.testing.assert_allclose(votes(nested), each.mean(axis=0), rtol=1e-4, atol=1e-5)


def test_members_of_different_networks_see_their_own_views_whatever_goes_together():
    networks = [of.build(name, 4) for name in ("tiny", "thumbnail")]
    for network in networks:
        last = network.classifier.layers[-1]
        last.kernel.assign(last.kernel * 60)
    one, other = (Model(network, LABELS, OPTIONS, ("classification",)) for network in networks)
    for members in ((one, other), (other, one)):
        committee = Model.committee(members)
        np.testing.assert_allclose(votes(committee.with_options(images_at_once=2)), votes(committee), atol=1e-5)


def test_a_committee_is_exported_as_one_model(members, tmp_path):
    committee = Model.committee(members)
    loaded = of.load(export(committee, tmp_path / "committee"))
    answers, live = loaded.classify(picture()), committee.classify(picture())
    np.testing.assert_allclose(answers["probs"], live["probs"], rtol=1e-4, atol=1e-6)
    assert loaded.tasks == ("classification",)
    with pytest.raises(ValueError, match="expected a model with the signature 'extract_features'"):
        loaded.extract_features(picture())


def test_a_committee_has_no_features_of_its_own(members):
    with pytest.raises(ValueError, match="expected one network to take features from"):
        Model.committee(members).extract_features(picture())


def test_a_committee_comes_back_from_its_folder(members, tmp_path):
    committee = Model.committee(members)
    committee.save_weights(tmp_path / "weights")
    (tmp_path / CONFIG).write_text(json.dumps({"model": committee.config()}))
    assert not list(tmp_path.rglob("regressor*"))  # it has no use for boxes
    np.testing.assert_allclose(votes(of.load(tmp_path)), votes(committee), rtol=1e-5, atol=1e-6)


def test_members_must_agree_on_the_classes_and_be_classifiers(members):
    with pytest.raises(ValueError, match="expected at least one member"):
        Model.committee([])
    with pytest.raises(ValueError, match="expected models of runs; member 1 is 'Network'"):
        Model.committee([members[0].network])
    other = Model(members[0].network, ("cat", "dog", "eel", "gnu"), OPTIONS, ("classification",))
    with pytest.raises(ValueError, match="expected members of a committee to know the same classes; member 2 differs"):
        Model.committee([members[0], other])
    untrained = Model(members[0].network, LABELS, OPTIONS, ())
    with pytest.raises(ValueError, match="expected classifiers; member 1 was trained for nothing"):
        Model.committee([untrained])
