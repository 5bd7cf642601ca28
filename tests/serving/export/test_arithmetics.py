"""An export with transformed arithmetic or in bfloat16: the same answers to whoever loads it."""

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from exported_model import GOOD

from overfeat_tf.compute import execution as arithmetic
from overfeat_tf.models.loading import read_config
from overfeat_tf.models.model import Model
from overfeat_tf.options import ARITHMETICS
from serving.export.card import model_card
from serving.export.exporter import export
from serving.export.footprint import compare

MOST = 1e-3  # between the arithmetics: scores, and boxes of an image's side


@pytest.fixture(scope="module")
def version(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The model, whose few channels would not pay, exported as if they did."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "SAVED", -1e15)
        patch.setattr("overfeat_tf.compute.dense.winograd_cost", lambda *_: 0.0)
        transformed = model.with_options(arithmetic="transformed")
        yield export(transformed, tmp_path_factory.mktemp("models") / "pets")
        for network in transformed.networks:  # which the other tests' model shares
            network.cache.clear()


@pytest.fixture(scope="module")
def reduced(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(model.with_options(arithmetic="bfloat16"), tmp_path_factory.mktemp("reduced") / "pets")


def ask_a_stranger(version: Path, images: list[bytes], folder: Path) -> dict:
    (folder / "requests").write_bytes(pickle.dumps(images))
    script = Path(__file__).parents[1] / "stranger.py"
    command = [sys.executable, script, version, folder / "requests", folder / "out"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return pickle.loads((folder / "out").read_bytes())


def assert_alike(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(found[key][:GOOD], value[:GOOD], rtol=MOST, atol=MOST, err_msg=key)


def test_a_stranger_gets_the_direct_answers(model: Model, version: Path, images: list[bytes], tmp_path: Path):
    found = ask_a_stranger(version, images, tmp_path)
    live = model.detect(images)
    assert live["num_detections"][:6].min() > 0
    for answers in (found["session"]["serving_default"], found["callables"]["detect"]):
        assert_alike(answers, live)
    assert found["operations"]["unknown"] == set() and found["operations"]["compiled"] == []
    assert found["gradients"]["trainable"] == 20 and found["gradients"]["learning"] == 8


def test_bfloat16_is_answered_as_live_in_half_the_bytes(
    model: Model, reduced: Path, exported: Path, images: list[bytes], tmp_path: Path
):
    found, live = ask_a_stranger(reduced, images, tmp_path), model.with_options(arithmetic="bfloat16").detect(images)
    assert live["num_detections"][:6].min() > 0
    for answers in (found["session"]["serving_default"], found["callables"]["detect"]):
        assert answers["detection_boxes"].dtype == np.float32
        np.testing.assert_allclose(answers["detection_scores"], live["detection_scores"], atol=0.02)
    assert found["operations"]["unknown"] == set() and found["operations"]["compiled"] == []
    # The same variables as of other exports, and they can be trained.
    assert found["gradients"]["trainable"] == 20 and found["gradients"]["learning"] == 8
    sizes = [sum(file.stat().st_size for file in (each / "variables").iterdir()) for each in (reduced, exported)]
    assert sizes[0] < 0.55 * sizes[1]
    assert read_config(reduced)["exported"]["arithmetic"] == "bfloat16"
    card = model_card(model.with_options(arithmetic="bfloat16"), "pets", 1, reduced, {}, {"date": "", "tensorflow": ""})
    assert "stored in bfloat16" in card and "--arithmetic transformed" in card


def test_no_more_is_written_than_of_a_direct_one(version: Path, exported: Path):
    sizes = [sum(file.stat().st_size for file in (each / "variables").iterdir()) for each in (version, exported)]
    assert abs(sizes[0] - sizes[1]) < 20_000
    reader = tf.train.load_checkpoint(str(version / "variables" / "variables"))
    assert not [name for name in reader.get_variable_to_shape_map() if "transformed" in name]


@pytest.mark.long
def test_the_card_has_all(model: Model, version: Path, monkeypatch):
    transformed = model.with_options(arithmetic="transformed")
    monkeypatch.setattr("serving.export.footprint.worth_measuring", lambda _: ARITHMETICS)
    found = compare(transformed, version)
    assert found is not None and set(found.footprints) == {"direct", "transformed", "bfloat16"}
    assert 0 < found.errors["transformed"] < 1e-4 < found.errors["bfloat16"] < 0.02
    made = {"date": "2026-01-01", "tensorflow": tf.__version__}
    card = model_card(transformed, "pets", 1, version, {}, made, comparison=found)
    assert "| **transformed**, this version |" in card and "| direct |" in card and "The error is" in card
