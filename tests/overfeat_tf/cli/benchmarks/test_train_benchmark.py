"""The training benchmark: that it runs, on a small network, with PyTorch and without."""

from dataclasses import replace
from importlib.util import find_spec

import pytest

from overfeat_tf.cli.benchmarks import training as benchmark
from overfeat_tf.compute.precision import MIXED
from overfeat_tf.network.convnet import build
from overfeat_tf.network.presets import PRESETS
from training.recipes import get_recipe
from training.sources import open_source
from training.tasks import TRAINED_TASKS

TINY = replace(PRESETS["tiny"], dropout=0.0)
RECIPE = replace(get_recipe("imagenet-fast"), preset="tiny")


@pytest.mark.long
def test_a_small_network_is_measured(tmp_path):
    benchmark.write_photographs(tmp_path / "photograph", 8)
    source = open_source(f"folder:{tmp_path}")
    fitted = TRAINED_TASKS["classification"].model(build(TINY, 10), RECIPE)
    both = benchmark.pipeline_of_decode(source, TINY, RECIPE, 2)
    assert len(both) == 2
    for ratios in both:
        assert len(ratios) == 2 and all(0.05 < ratio < 1.5 for ratio in ratios)
    ratios = benchmark.reading_of_decode(source, 2)
    assert len(ratios) == 2 and all(0.2 < ratio < 100 for ratio in ratios)
    ratios = benchmark.fit_of_step(fitted, source, TINY, RECIPE, 2, 3)
    assert len(ratios) == 2 and min(ratios) > 0


@pytest.mark.long
@pytest.mark.parametrize("precision", ["float32", MIXED])
def test_pytorch_takes_its_steps_beside_ours(precision, monkeypatch):
    if find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    monkeypatch.setattr(benchmark, "CLASSES", 10)
    recipe = replace(RECIPE, precision=precision)
    fitted = TRAINED_TASKS["classification"].model(build(PRESETS["tiny"], 10), recipe)
    ratios = benchmark.of_pytorch(fitted, PRESETS["tiny"], recipe, 2, 3)
    assert len(ratios) == 2 and min(ratios) > 0


def test_without_pytorch_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setattr(benchmark, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"^expected PyTorch [^\n]*: pip install torch$"):
        benchmark.of_pytorch(None, PRESETS["tiny"], RECIPE, 2, 3)
