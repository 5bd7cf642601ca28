"""What the stages compile: the classifier's background class, and the optimizer."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_run import RECIPE

from overfeat_tf.models.model import Model
from overfeat_tf.network.convnet import build
from training.fit.stages import COSINE_END, StageAdamW, StageSGD, WarmUp
from training.fit.transfer import with_background
from training.recipes import Schedule
from training.tasks import TRAINED_TASKS

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def plain() -> Model:
    model = Model(build("tiny", 3), NAMES, RECIPE.inference, ("classification", "localization"))
    assert "regressor" in model.network.regressor.name  # built, as the second stage does
    return model


def test_a_background_class_changes_no_other_score(plain):
    grown = with_background(plain)
    assert grown.network.background and not plain.network.background
    assert (grown.labels, grown.options, grown.tasks) == (plain.labels, plain.options, plain.tasks)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 40, 44, 3)).astype(np.float32)
    old, old_edges, new, new_edges = (
        m.network.as_model()(pixels)[k] for m in (plain, grown) for k in ("scores", "boxes")
    )
    assert np.ptp(old) > 0
    np.testing.assert_allclose(new[..., 1:], old, atol=1e-5)
    np.testing.assert_array_equal(new[..., 0], np.zeros_like(new[..., 0]))
    np.testing.assert_allclose(new_edges, old_edges, atol=1e-5)


def test_classification_sees_one_window_and_the_others_many(plain):
    grown = with_background(plain)
    assert TRAINED_TASKS["classification"].model(plain.network, RECIPE).output_shape == (None, 3)
    windows = plain.network.preset.window_count(RECIPE.side)
    localization, detection = (
        TRAINED_TASKS[s].model(grown.network, RECIPE).output for s in ("localization", "detection")
    )
    assert {name: maps.shape for name, maps in localization.items()} == {"boxes": (None, windows, windows, 4)}
    assert detection["boxes"].shape == detection["scores"].shape == (None, windows, windows, 4)


def test_what_a_users_checkpoint_saves_is_a_plain_keras_model(plain, tmp_path):
    for stage in ("classification", "detection"):
        fitted = TRAINED_TASKS[stage].model(
            (plain if stage == "classification" else with_background(plain)).network, RECIPE
        )
        checkpoint = keras.callbacks.ModelCheckpoint(str(tmp_path / "model.keras"))
        checkpoint.set_model(fitted)
        checkpoint.on_epoch_end(0, {})
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert type(loaded).__name__ == "Functional"
        pixels = np.random.default_rng(0).uniform(0, 255, (1, *fitted.input_shape[1:])).astype(np.float32)
        for ours, theirs in zip(keras.tree.flatten(fitted(pixels)), keras.tree.flatten(loaded(pixels)), strict=True):
            np.testing.assert_allclose(theirs, ours, atol=1e-5)


def rates(plain: Model, schedule: Schedule) -> list[float]:
    """Read the rate of each step."""
    optimizer = TRAINED_TASKS["classification"].model(plain.network, replace(RECIPE, classification=schedule)).optimizer
    found = []
    for step in range(schedule.steps):
        optimizer.iterations.assign(step)
        found.append(float(optimizer.learning_rate))
    return found


@pytest.mark.parametrize("drops", [{"drops": (0.5, 0.8)}, {"drop_epochs": (2.5, 4)}])
def test_the_rate_drops_with_the_first_step_after_its_share_of_them(plain, drops):
    schedule = Schedule(steps=10, batch=4, learning_rate=0.02, factor=0.1, epochs=5, **drops)
    np.testing.assert_allclose(rates(plain, schedule), [0.02] * 5 + [0.002] * 3 + [0.0002] * 2, rtol=1e-6)


def test_of_drops_before_the_first_step_all_are_made(plain):
    schedule = Schedule(steps=3, batch=4, learning_rate=0.02, drops=(0.1, 0.15, 0.5), factor=0.5)
    np.testing.assert_allclose(rates(plain, schedule), [0.005, 0.005, 0.0025], rtol=1e-6)


def test_a_cosine_falls_from_the_rate_to_a_hundredth_after_the_warm_up(plain):
    found = rates(plain, Schedule(steps=9, batch=4, learning_rate=0.02, schedule="cosine", warm_up=2))
    share = (1 + np.cos(np.pi * np.arange(9) / 9)) / 2
    expected = 0.02 * ((1 - COSINE_END) * share + COSINE_END) * np.minimum(0.1 + 0.45 * np.arange(9), 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", [StageSGD, StageAdamW])
def test_a_slow_variable_moves_at_its_share_of_the_rate(kind):
    slow, usual = keras.Variable([[1.0]], name="slow"), keras.Variable([[1.0]], name="usual")
    optimizer = kind(slow={slow.path: 0.25}, learning_rate=0.1)
    optimizer.apply([tf.constant([[2.0]])] * 2, [slow, usual])
    np.testing.assert_allclose(1.0 - slow.numpy(), 0.25 * (1.0 - usual.numpy()), rtol=1e-4)
    assert usual.numpy() < 0.95


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_decoupled_decay_is_of_kernels_alone(plain, optimizer):
    schedule = replace(RECIPE.classification, optimizer=optimizer, weight_decay=0.5, learning_rate=0.1, drops=())
    fitted = TRAINED_TASKS["classification"].model(plain.network, replace(RECIPE, classification=schedule))
    variables = fitted.trainable_variables
    before = [variable.numpy() for variable in variables]
    fitted.optimizer.apply([tf.zeros(variable.shape) for variable in variables], variables)
    for old, variable in zip(before, variables, strict=True):
        np.testing.assert_allclose(variable.numpy(), old * (0.95 if len(variable.shape) > 1 else 1.0), rtol=1e-5)


@pytest.mark.parametrize("kind", [StageSGD, StageAdamW])
def test_a_slow_variable_decays_as_others_do(kind):
    slow, usual = keras.Variable([[1.0]], name="slow"), keras.Variable([[1.0]], name="usual")
    optimizer = kind(slow={slow.path: 0.25}, decoupled=0.5, learning_rate=0.1)
    optimizer.apply([tf.zeros([1, 1])] * 2, [slow, usual])
    np.testing.assert_allclose([slow.numpy(), usual.numpy()], [[[0.95]], [[0.95]]], rtol=1e-6)


@pytest.mark.parametrize("length, moved", [(2.0, 2.0), (10.0, 5.0)])
def test_the_step_is_of_the_clipped_gradient(length, moved):
    weights = tf.Variable([0.0, 0.0])
    StageSGD(5.0, learning_rate=0.1).apply([tf.constant([0.6, 0.8]) * length], [weights])
    np.testing.assert_allclose(weights, [-0.06 * moved, -0.08 * moved], rtol=1e-5)


def test_l2_decay_goes_through_the_momentum_and_leaves_biases_alone():
    kernel, bias = tf.Variable([[2.0]]), tf.Variable([2.0])
    optimizer = StageSGD(None, 0.1, learning_rate=0.5, momentum=0.6)
    optimizer.build([kernel, bias])
    gradient, moved, weight = 1.0, 0.0, 2.0
    for _ in range(3):
        moved = 0.6 * moved - 0.5 * (gradient + 0.1 * weight)  # the gradient of loss + 0.1 / 2 * w^2
        weight += moved
        optimizer.apply([tf.constant([[gradient]]), tf.constant([gradient])], [kernel, bias])
    np.testing.assert_allclose(kernel, [[weight]], rtol=1e-6)
    np.testing.assert_allclose(bias, [2.0 - 0.5 * (1 + 1.6 + 1.96)], rtol=1e-6)


@pytest.mark.parametrize("steps, epochs", [(90, 90), (99, 7), (3, 7), (20, 3), (1, 1)])
def test_the_epochs_that_are_left_have_the_steps_that_are_left(steps, epochs):
    schedule = Schedule(steps=steps, batch=1, learning_rate=1.0, epochs=epochs)
    for done in range(steps + 1):
        at, ended = done, -1
        for first, last, each in schedule.epochs_left(done):
            assert ended in (-1, first) and last > first and each > 0
            ended, at = last, at + (last - first) * each
            # An epoch ends where it always does.
            assert at == (steps if last == schedule.epoch_count else last * schedule.epoch_steps)
        assert at == steps and (ended == schedule.epoch_count or done == steps)


def test_the_rate_halves_after_the_papers_epochs():
    """The last step of each, counted from 0."""
    schedule = Schedule(steps=90, batch=1, learning_rate=1.0, epochs=90, drop_epochs=(30, 50))
    assert schedule.boundaries == [29, 49]
    assert Schedule(steps=900, batch=1, learning_rate=1.0, epochs=90, drop_epochs=(30, 50)).boundaries == [299, 499]


@pytest.mark.parametrize("kind", [StageSGD, StageAdamW])
def test_a_model_that_our_optimizers_train_is_described_as_json(kind):
    """As `keras.callbacks.TensorBoard` does, which drops the graph where that fails."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    rate = WarmUp(keras.optimizers.schedules.CosineDecay(0.1, 9), 3)
    model.compile(kind(0.5, decoupled=0.01, learning_rate=rate))
    assert '"WarmUp"' in model.to_json()
