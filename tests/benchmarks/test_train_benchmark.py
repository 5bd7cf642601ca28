"""The training benchmark: that both sides do the same work, and that it runs (on a small network)."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import training as benchmark
from overfeat_tf.network import build
from overfeat_tf.presets import PRESETS
from training.recipes import get_recipe
from training.stages import stage_model

TINY = replace(PRESETS["tiny"], dropout=0.0)
RECIPE = replace(get_recipe("imagenet-fast"), preset="tiny")


@pytest.mark.long
def test_a_small_network_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "IMAGES", 8)
    monkeypatch.setattr("benchmarks.extraction.IMAGES", 8)
    (tmp_path / "photograph").mkdir()
    benchmark.write_photographs(tmp_path / "photograph")
    fitted = stage_model("classification", build(TINY, 10), RECIPE)
    ratios, _ = benchmark.pipeline_of_decode(tmp_path, TINY, RECIPE, 2)
    assert len(ratios) == 2 and all(0.05 < ratio < 1.5 for ratio in ratios)
    ratios, _ = benchmark.fit_of_step(fitted, tmp_path, TINY, RECIPE, 2, 3)
    assert len(ratios) == 2 and min(ratios) > 0


def test_pytorch_takes_the_same_steps():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, 8, np.int32)
    fitted = stage_model("classification", build(TINY, 10), RECIPE)
    work = [float(np.asarray(fitted.train_on_batch(tf.constant(pixels), tf.constant(labels))[0])) for _ in range(3)]
    torch.manual_seed(0)
    step = benchmark.torch_step(TINY, 10, 0.05, 0.6, 1e-5, pixels, labels)
    theirs = [step() for _ in range(3)]
    # Other initial weights: only the first loss, of nearly even scores, and its direction are alike.
    assert theirs[0] == pytest.approx(work[0], rel=0.2) and theirs[-1] < theirs[0] * 1.05
