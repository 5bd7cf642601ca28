"""An export with Winograd arithmetic or in bfloat16: the same answers to whoever loads it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from exported_model import GOOD, ask

from overfeat_tf.compute import execution as arithmetic
from overfeat_tf.models.loading import load, read_config
from overfeat_tf.models.model import Model
from overfeat_tf.options import ARITHMETICS
from serving.export.card import model_card
from serving.export.exporter import export
from serving.export.footprint import compare

MOST = 1e-3  # between the arithmetics: scores, and boxes of an image's side


@pytest.fixture(scope="module")
def detector(model: Model) -> Model:
    """The model at one scale and for one task, which has every layer."""
    return replace(model.with_options(scales=(4,)), tasks=("detection",))


@pytest.fixture(scope="module")
def version(detector: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The model, whose few channels would not pay, exported as if they did."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "MIN_SAVING", -1e15)
        patch.setattr(arithmetic, "MIN_SPEEDUP", 0.0)
        patch.setattr("overfeat_tf.compute.dense.winograd_cost", lambda *_: 0.0)
        winograd = detector.with_options(arithmetic="winograd")
        yield export(winograd, tmp_path_factory.mktemp("models") / "pets")
        for network in winograd.networks:  # which the other tests' model shares
            network.executions.clear()


@pytest.fixture(scope="module")
def reduced(detector: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(detector.with_options(arithmetic="bfloat16"), tmp_path_factory.mktemp("reduced") / "pets")


@pytest.fixture(scope="module")
def strangers(
    version: Path, reduced: Path, images: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict]:
    """What a process without this project makes of both."""
    winograd, bfloat16 = ask(tmp_path_factory.mktemp("stranger"), images, version, reduced)
    return {"winograd": winograd, "bfloat16": bfloat16}


def variable_bytes(version: Path) -> int:
    return sum(file.stat().st_size for file in (version / "variables").iterdir())


def float32_bytes(model: Model) -> int:
    return 4 * sum(part.count_params() for part in model.network.parts.values())


def assert_alike(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(found[key][:GOOD], value[:GOOD], rtol=MOST, atol=MOST, err_msg=key)


def test_reloaded_it_gives_the_direct_answers(detector: Model, version: Path, images: list[bytes]):
    live = detector.detect(images)
    assert live["num_detections"][:6].min() > 0
    assert_alike(load(version).detect(images), live)


def test_bfloat16_reloaded_is_as_live_in_half_the_bytes(detector: Model, reduced: Path, images: list[bytes]):
    live = detector.with_options(arithmetic="bfloat16").detect(images)
    found = load(reduced).detect(images)
    assert found["detection_boxes"].dtype == np.float32
    np.testing.assert_allclose(found["detection_scores"], live["detection_scores"], atol=0.02)
    assert variable_bytes(reduced) < 0.55 * float32_bytes(detector)


@pytest.mark.long
def test_a_stranger_gets_the_direct_answers(detector: Model, strangers: dict, images: list[bytes]):
    found, live = strangers["winograd"], detector.detect(images)
    assert live["num_detections"][:6].min() > 0
    for answers in (found["session"]["serving_default"], found["callables"]["detect"]):
        assert_alike(answers, live)
    assert found["operations"]["unknown"] == set() and found["operations"]["compiled"] == []
    assert found["gradients"]["trainable"] == 20 and found["gradients"]["learning"] == 8


@pytest.mark.long
def test_a_stranger_gets_the_live_answers_of_bfloat16(
    detector: Model, reduced: Path, strangers: dict, images: list[bytes]
):
    live_model = detector.with_options(arithmetic="bfloat16")
    found, live = strangers["bfloat16"], live_model.detect(images)
    assert live["num_detections"][:6].min() > 0
    for answers in (found["session"]["serving_default"], found["callables"]["detect"]):
        assert answers["detection_boxes"].dtype == np.float32
        np.testing.assert_allclose(answers["detection_scores"], live["detection_scores"], atol=0.02)
    assert found["operations"]["unknown"] == set() and found["operations"]["compiled"] == []
    # The same variables as of other exports, and they can be trained.
    assert found["gradients"]["trainable"] == 20 and found["gradients"]["learning"] == 8
    assert read_config(reduced)["exported"]["arithmetic"] == "bfloat16"
    card = model_card(live_model, "pets", 1, reduced, {}, {"date": "", "tensorflow": ""})
    assert "stored in bfloat16" in card and "--arithmetic winograd" in card


def test_no_more_is_written_than_of_a_direct_one(detector: Model, version: Path):
    assert abs(variable_bytes(version) - float32_bytes(detector)) < 20_000
    reader = tf.train.load_checkpoint(str(version / "variables" / "variables"))
    assert not [name for name in reader.get_variable_to_shape_map() if "winograd" in name]


@pytest.mark.long
def test_the_card_has_all(detector: Model, version: Path, monkeypatch):
    # At scale 4 random weights let so little through that rounding is a large part of the scores.
    winograd = detector.with_options(arithmetic="winograd", scales=(1,))
    monkeypatch.setattr("serving.export.footprint.worth_measuring", lambda _: ARITHMETICS)
    found = compare(winograd, version)
    assert found is not None and set(found.footprints) == {"direct", "winograd", "bfloat16"}
    assert 0 < found.errors["winograd"] < 1e-4 < found.errors["bfloat16"] < 0.02
    made = {"date": "2026-01-01", "tensorflow": tf.__version__}
    card = model_card(winograd, "pets", 1, version, {}, made, comparison=found)
    assert "| **winograd**, this version |" in card and "| direct |" in card and "The error is" in card
