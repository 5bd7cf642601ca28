"""An export with transformed arithmetic: the same model on disk, and the same answers to whoever loads it."""

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
from overfeat_tf.models.model import Model
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


def assert_alike(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(found[key][:GOOD], value[:GOOD], rtol=MOST, atol=MOST, err_msg=key)


def test_a_stranger_gets_the_direct_answers(model: Model, version: Path, images: list[bytes], tmp_path: Path):
    (tmp_path / "requests").write_bytes(pickle.dumps(images))
    command = [
        sys.executable,
        Path(__file__).parents[1] / "stranger.py",
        version,
        tmp_path / "requests",
        tmp_path / "out",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = pickle.loads((tmp_path / "out").read_bytes())
    live = model.detect(images)
    assert live["num_detections"][:6].min() > 0
    for answers in (found["session"]["serving_default"], found["callables"]["detect"]):
        assert_alike(answers, live)
    assert found["operations"]["unknown"] == set() and found["operations"]["compiled"] == []
    assert found["gradients"]["trainable"] == 20 and found["gradients"]["learning"] == 8


def test_no_more_is_written_than_of_a_direct_one(version: Path, exported: Path):
    sizes = [sum(file.stat().st_size for file in (each / "variables").iterdir()) for each in (version, exported)]
    assert abs(sizes[0] - sizes[1]) < 20_000
    reader = tf.train.load_checkpoint(str(version / "variables" / "variables"))
    assert not [name for name in reader.get_variable_to_shape_map() if "transformed" in name]


@pytest.mark.long
def test_the_card_has_both(model: Model, version: Path):
    transformed = model.with_options(arithmetic="transformed")
    found = compare(transformed, version)
    assert found is not None and set(found.footprints) == {"direct", "transformed"}
    assert found.error is not None and 0 < found.error < 1e-4
    made = {"date": "2026-01-01", "tensorflow": tf.__version__}
    card = model_card(transformed, "pets", 1, version, {}, made, comparison=found)
    assert "| **transformed**, this version |" in card and "| direct |" in card and "The two differ by" in card
