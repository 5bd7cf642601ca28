"""A step in parts, by XLA and in reduced precision is the step of the whole batch."""

import inspect
from dataclasses import replace
from functools import reduce
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_run import RECIPE, SCHEDULE

from overfeat_tf.network.convnet import build
from overfeat_tf.network.presets import PRESETS
from training.recipes import override
from training.tasks import TRAINED_TASKS
from training.views.targets import pack_edges

BATCH, STEPS = 4, 3
CALM = {**PRESETS, "tiny": replace(PRESETS["tiny"], dropout=0.0)}


def detection_batch(side: int = RECIPE.side):
    rng = np.random.default_rng(0)
    maps = [PRESETS["tiny"].window_count(side)] * 2
    labels = rng.integers(-1, 4, (BATCH, *maps)).astype(np.int32)
    edges = tf.constant(rng.normal(size=(BATCH, *maps, 4)).astype(np.float32))
    pixels = rng.uniform(0, 255, (BATCH, side, side, 3)).astype(np.float32)
    return tf.constant(pixels), {"scores": tf.constant(labels), "boxes": pack_edges(edges, tf.maximum(labels, 0))}


def classification_batch():
    rng = np.random.default_rng(0)
    return tf.constant(rng.uniform(0, 255, (BATCH, 32, 32, 3)).astype(np.float32)), tf.constant([0, 1, 2, 1])


BATCHES = {
    "classification": [classification_batch()],
    "detection": [detection_batch()],
    "whole images": [detection_batch(RECIPE.side), detection_batch(RECIPE.side + 12)],
}


def trained(shown: str, *settings: str):
    """Take a few steps on batches in turn: (network, weights, figures)."""
    stage = shown
    if shown == "whole images":
        stage, settings = "detection", ("views.whole_image=True", *settings)
    keras.utils.set_random_seed(0)
    schedule = replace(SCHEDULE, clip=0.5)  # so that it does clip
    recipe = override(replace(RECIPE, **{stage: schedule}), list(settings))
    with mock.patch.dict(PRESETS, CALM):
        network = build("tiny", 3, background=stage == "detection")
    model = TRAINED_TASKS[stage].model(network, recipe)
    model.optimizer.build(model.trainable_variables)
    # One after the other, so that the sides are unknown where they differ.
    data = reduce(tf.data.Dataset.concatenate, map(tf.data.Dataset.from_tensors, BATCHES[shown])).repeat()
    history = model.fit(data, epochs=STEPS, steps_per_epoch=1, shuffle=False, verbose=0).history
    return network, model, history


@pytest.fixture(scope="module")
def plain() -> dict:
    return {shown: trained(shown) for shown in BATCHES}


def assert_near(found, wanted, rtol: float, atol: float) -> None:
    for one, other in zip(found[1].get_weights(), wanted[1].get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)
    assert found[2].keys() == wanted[2].keys()
    for name, values in wanted[2].items():
        np.testing.assert_allclose(found[2][name], values, rtol=max(rtol, 1e-4), err_msg=name)


@pytest.mark.parametrize("shown", BATCHES)
def test_a_step_in_parts_is_the_step_of_the_whole_batch(plain, shown):
    """The rate drops after the second step, and the gradient is clipped, so both have to be of whole batches."""
    stage = "classification" if shown == "classification" else "detection"
    assert_near(trained(shown, f"{stage}.accumulate=2"), plain[shown], 1e-4, 1e-6)


@pytest.mark.long
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("shown", ["detection", "whole images"])
def test_xla_compiles_the_step(plain, shown, parts):
    compiled = trained(shown, "jit_compile=True", f"detection.accumulate={parts}")
    assert_near(compiled, plain[shown], 1e-3, 1e-5)


@pytest.mark.parametrize(
    "precision, dtype",
    [("mixed_bfloat16", "bfloat16"), pytest.param("mixed_float16", "float16", marks=pytest.mark.long)],
)
def test_reduced_precision_stays_within_the_step(plain, precision, dtype):
    network, model, figures = trained("detection", f"precision={precision}")
    np.testing.assert_allclose(figures["loss"], plain["detection"][2]["loss"], rtol=0.02)
    pixels = detection_batch()[0]
    with mock.patch.object(network.features.layers[2], "call", wraps=network.features.layers[2].call) as conv:
        outputs = model(pixels, training=True)
    assert conv.call_args.args[0].dtype == dtype
    assert {output.dtype for output in outputs.values()} == {tf.float32}
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}
    # Others who use the network compute in float32.
    assert network.features(pixels).dtype == tf.float32
    exact, near = (m.get_layer("scores")(network.head_maps(pixels)) for m in (network.as_model(RECIPE.side), model))
    np.testing.assert_array_equal(exact, near)


@pytest.mark.long
def test_the_scale_of_float16_follows_overflows(plain):
    _, model, _ = trained("detection", "precision=mixed_float16")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    before = model.get_weights()
    model.optimizer.dynamic_scale.assign(1e38)
    model.fit(tf.data.Dataset.from_tensors(detection_batch()), shuffle=False, verbose=0)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert float(model.optimizer.dynamic_scale.numpy()) == pytest.approx(0.5e38)


def test_keras_still_reduces_a_whole_batch_before_it_fits():
    """Once it does not, or not with several workers, `StageModel._maybe_symbolic_build` can go."""
    assert "distribute_strategy.reduce(" in inspect.getsource(keras.Model._maybe_symbolic_build)
