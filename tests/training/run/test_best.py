"""The best weights of a stage are kept, the last ones beside them; averages, early ends and more steps resume."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from small_run import RECIPE, SCHEDULE
from small_source import few_digits

from overfeat_tf.models.loading import load_run, read_config
from overfeat_tf.network.convnet import build
from serving.export.card import run_figures, run_weights
from training.fit import train as module
from training.fit.callbacks import EMA, read_results
from training.fit.train import train
from training.run.checkpoints import BestWeights, Monitor
from training.run.resume import add_steps, resumed

EPOCHS, STEPS = 3, 6  # of the four and eight that are asked for: patience ends there
FOUND = (0.4, 0.9, 0.9, 0.1, 0.5)  # of the epochs


def judged(folder: Path, values, mode="max", patience=None) -> tuple[BestWeights, list[int]]:
    """Give epochs of four steps these values; return what was saved, and the steps at which it was."""
    saved: list[int] = []

    def save(folder: Path) -> None:
        folder.mkdir()
        saved.append(at.step)

    at = SimpleNamespace(step=0)
    best = BestWeights(folder, Monitor("val_x", mode), save, at, 4, patience, nullcontext)
    best.set_model(SimpleNamespace(stop_training=False))
    for epoch, value in enumerate(values):
        at.step += 4
        best.on_epoch_end(epoch, {"val_x": value} if value is not None else {})
        if best.model.stop_training:
            break
    return best, saved


@pytest.mark.parametrize(
    "mode, values, at, reached",
    [("max", FOUND, 12, 8), ("min", FOUND, 16, 16), ("max", (float("nan"), None, 0.0, float("nan")), 12, 12)],
)
def test_the_best_epoch_is_kept_and_of_equal_ones_the_later(tmp_path, mode, values, at, reached):
    best, saved = judged(tmp_path, values, mode)
    expected = {"step": at, "epoch": at // 4, "value": values[at // 4 - 1], "reached": reached}
    assert best.read()["best"] == expected and at in saved
    assert [path.name for path in tmp_path.glob("best-*")] == [f"best-{at}"]


def test_without_a_figure_nothing_is_kept(tmp_path):
    best, saved = judged(tmp_path, (None, float("nan")))
    assert best.read() is None and not saved and not best.exhausted()


@pytest.mark.parametrize("patience, ended_at", [(1, 12), (2, 16), (3, 20), (None, 20)])
def test_a_stage_ends_after_so_many_epochs_without_a_better_one(tmp_path, patience, ended_at):
    best, _ = judged(tmp_path, FOUND, patience=patience)
    assert best.read()["last"]["step"] == ended_at
    assert best.exhausted() is (patience is not None)  # as a process that resumes sees it


def test_averages_follow_the_weights_and_are_shown_to_validation_alone():
    network = build("tiny", 3)
    network.features.trainable = False
    model = SimpleNamespace(optimizer=SimpleNamespace(iterations=tf.Variable(0)))
    ema = EMA(model, network, 0.5)
    kernel = network.classifier.trainable_weights[0]
    assert len(ema.variables) == len(network.classifier.weights)  # what is frozen has none
    expected, now = kernel.numpy(), kernel.numpy()
    for step in (1, 2, 30):
        model.optimizer.iterations.assign(step)
        kernel.assign(now := now + step)
        ema.on_train_batch_end(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * now
    with ema.applied():
        np.testing.assert_allclose(kernel.numpy(), expected, rtol=1e-5)
    np.testing.assert_array_equal(kernel.numpy(), now)
    ema.apply()
    np.testing.assert_allclose(kernel.numpy(), expected, rtol=1e-5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run whose second epoch is the best one, which ends early, and one that was broken off after it and resumed."""
    schedule = replace(SCHEDULE, steps=8, epochs=4, optimizer="adamw", schedule="cosine", learning_rate=0.002)
    recipe, source = replace(RECIPE, classification=schedule, ema=0.9, patience=1), few_digits(8, 2)
    shown: dict[tuple[str, int], list[np.ndarray]] = {}
    judge, broken = BestWeights.on_epoch_end, []

    def told(self, epoch, logs=None):
        logs["val_top1"] = FOUND[epoch] if epoch != 2 else 0.2
        with self._applied():
            shown[self._folder.parts[-3], epoch] = [np.array(w) for w in self.model.get_weights()]
        if self._folder.parts[-3] == "broken" and epoch == 2 and not broken:
            broken.append(epoch)
            raise KeyboardInterrupt
        judge(self, epoch, logs)

    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BestWeights, "on_epoch_end", told)
        patch.setattr(module, "stage_boards", lambda *_: [])
        model = train(recipe, source, folder / "whole", ["classification"]).model
        with pytest.raises(KeyboardInterrupt):
            train(recipe, source, folder / "broken", ["classification"])
        train(recipe, source, folder / "broken", ["classification"])
    return SimpleNamespace(recipe=recipe, source=source, folder=folder, shown=shown, model=model)


def weights(run: Path, last: bool) -> list[np.ndarray]:
    network = load_run(run, last).network
    return [*network.features.get_weights(), *network.classifier.get_weights()]


@pytest.mark.parametrize("name", ["whole", "broken"])
def test_a_run_leaves_the_best_averages_and_beside_them_the_last(runs, name):
    for last, epoch in ((False, 1), (True, 2)):
        for found, expected in zip(weights(runs.folder / name, last), runs.shown["whole", epoch], strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert not all(map(np.array_equal, weights(runs.folder / name, True), weights(runs.folder / name, False)))
    config = read_config(runs.folder / name)
    assert config["kept"]["classification"]["best"] == {"step": 4, "epoch": 2, "value": 0.9, "reached": 4}
    assert run_weights(config).startswith("the best of classification, val_top1 0.9 in epoch 2 (the last: ")
    rows = read_results(runs.folder / name / "results.csv")
    assert [(row["stage"], row["epoch"], row["step"]) for row in rows] == [
        ("classification", str(1 + epoch), str(2 + 2 * epoch)) for epoch in range(EPOCHS)
    ]
    figures = run_figures(runs.folder / name)
    assert figures["classification val_loss"] == pytest.approx(float(rows[1]["val_loss"]))


def test_the_model_returned_has_the_best_weights(runs):
    found = [*runs.model.network.features.get_weights(), *runs.model.network.classifier.get_weights()]
    assert all(map(np.array_equal, found, weights(runs.folder / "whole", last=False)))


def test_a_run_knows_how_it_began_and_goes_on_for_more_steps(runs, no_boards):
    run = runs.folder / "broken"
    assert resumed(run) == (replace(runs.recipe, data="small"), "small", ("classification",))
    add_steps(run, 2)
    longer, _, stages = resumed(run)
    assert (longer.classification.steps, longer.classification.epochs) == (STEPS + 2, EPOCHS + 1)
    with pytest.raises(ValueError, match=r"^expected a finished run to continue; [^;]* is not: `overfeat train --run "):
        add_steps(run, 2)
    assert train(longer, runs.source, run, stages).model.tasks == ("classification",)
    assert tf.train.latest_checkpoint(str(run / "checkpoints" / "classification")).endswith(f"ckpt-{STEPS + 2}")
    assert [int(row["step"]) for row in read_results(run / "results.csv")] == [2, 4, 6, 8]
    assert "continued" not in read_config(run)
