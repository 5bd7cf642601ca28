"""The training benchmark: that it runs, on a small network, with PyTorch and without."""

from dataclasses import replace
from importlib.util import find_spec

import pytest

from overfeat_tf.cli.benchmarks.training import measure as benchmark
from overfeat_tf.cli.benchmarks.training.torch_step import timed_steps
from overfeat_tf.compute.precision import MIXED
from overfeat_tf.network.convnet import build
from overfeat_tf.network.presets import PRESETS
from training.recipes import get_recipe
from training.tasks import TRAINED_TASKS

TINY = replace(PRESETS["tiny"], dropout=0.0)
RECIPE = replace(get_recipe("imagenet-fast"), preset="tiny")


@pytest.mark.long
def test_a_small_network_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("overfeat_tf.cli.benchmarks.inputs.FILES", 8)
    (tmp_path / "photograph").mkdir()
    benchmark.write_photographs(tmp_path / "photograph")
    fitted = TRAINED_TASKS["classification"].model(build(TINY, 10), RECIPE)
    for ratios in benchmark.pipeline_of_decode(tmp_path, TINY, RECIPE, 2)[:2]:
        assert len(ratios) == 2 and all(0.05 < ratio < 1.5 for ratio in ratios)
    ratios, _ = benchmark.reading_of_decode(tmp_path, 2)
    assert len(ratios) == 2 and all(0.2 < ratio < 100 for ratio in ratios)
    ratios, _ = benchmark.fit_of_step(fitted, tmp_path, TINY, RECIPE, 2, 3)
    assert len(ratios) == 2 and min(ratios) > 0


@pytest.mark.long
@pytest.mark.parametrize("precision", ["float32", MIXED])
def test_pytorch_takes_its_steps_beside_ours(precision, monkeypatch):
    if find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    monkeypatch.setattr(benchmark, "CLASSES", 10)
    recipe = replace(RECIPE, precision=precision)
    fitted = TRAINED_TASKS["classification"].model(build(PRESETS["tiny"], 10), recipe)
    ratios, _ = benchmark.of_pytorch(fitted, PRESETS["tiny"], recipe, 2, 3)
    assert len(ratios) == 2 and min(ratios) > 0


def test_without_pytorch_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setattr("overfeat_tf.cli.benchmarks.training.torch_step.find_spec", lambda name: None)
    with (
        pytest.raises(ImportError, match=r"^expected PyTorch [^\n]*: pip install torch$"),
        timed_steps(PRESETS["tiny"], 10, 4, 0.1, 0.6, 0.0, autocast=False),
    ):
        pass
