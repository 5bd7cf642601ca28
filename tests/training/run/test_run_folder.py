"""A run's folder belongs to one process, has disk space, and stays complete if a process dies in it."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from small_run import RECIPE
from small_source import few_digits

from overfeat_tf.models.model import SPLIT
from overfeat_tf.models.tasks import TASKS
from overfeat_tf.network.convnet import build
from overfeat_tf.network.presets import PRESETS
from training.fit.train import train
from training.recipes import get_recipe
from training.run import folder as run_folder
from training.run.checkpoints import Checkpoints, Position
from training.run.preflight import disk_space
from training.tasks import TRAINED_TASKS

Usage = namedtuple("Usage", "total used free")
SCHEDULE = replace(RECIPE.classification, steps=8, epochs=2)


@pytest.fixture(scope="module")
def source():
    return few_digits(8, 2)


def test_two_runs_in_one_folder_are_refused_in_one_line(source, tmp_path):
    message = rf"^expected one process in '{tmp_path}'; process {os.getpid()} trains there: wait .*another --run$"
    with run_folder.held(tmp_path), pytest.raises(ValueError, match=message):
        train(RECIPE, source, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [run_folder.LOCK]


def test_a_killed_process_holds_no_folder(tmp_path):
    program = (
        "import os, signal, sys; from pathlib import Path; from training.run import folder as run_folder\n"
        "with run_folder.held(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == -9
    assert (tmp_path / run_folder.LOCK).exists()
    with run_folder.held(tmp_path):
        assert (tmp_path / run_folder.LOCK).read_text() == str(os.getpid())


@pytest.mark.parametrize("inside", ["file", "file/run"])
def test_a_folder_that_cannot_be_written_in_is_refused_in_one_line(source, tmp_path, inside):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=rf"^expected a folder to write in; got '{tmp_path / inside}': .*--run$"):
        train(RECIPE, source, tmp_path / inside)


def test_a_full_disk_is_refused_before_training(source, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 5 * 10**6, 5 * 10**6))
    message = r"^expected 0\.\d\d GB free on the disk of '.*', for weights, checkpoints and logs; got 0\.01 GB: make"
    with pytest.raises(OSError, match=message):
        train(RECIPE, source, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [run_folder.LOCK]


def test_what_a_run_holds_already_needs_no_room(tmp_path, monkeypatch):
    (tmp_path / "weights").write_bytes(bytes(1000))
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda _: Usage(0, 0, 500))
    run_folder.require_disk_space(tmp_path, 1500)
    with pytest.raises(OSError, match=re.escape("make space")):
        run_folder.require_disk_space(tmp_path, 1501)
    (tmp_path / run_folder.RECORDS).mkdir()
    (tmp_path / run_folder.RECORDS / "train.images").write_bytes(bytes(1000))  # which is no part of what is needed
    with pytest.raises(OSError, match=re.escape("make space")):
        run_folder.require_disk_space(tmp_path, 1501)


def test_of_a_run_that_did_not_begin_neither_split_nor_images_are_left(tmp_path):
    left = [tmp_path / SPLIT, tmp_path / run_folder.RECORDS / "train.npz"]
    left[1].parent.mkdir()
    for path in left:
        path.write_text("")
    (tmp_path / "config.json").write_text("{}")
    run_folder.recover(tmp_path)
    assert all(path.exists() for path in left)
    (tmp_path / "config.json").unlink()
    run_folder.recover(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_of_fewer_stages_needs_less_space():
    recipe = get_recipe("imagenet-accurate")
    one, all_three = (disk_space(recipe, PRESETS["accurate"], 1000, stages) for stages in (TASKS[:1], TASKS))
    assert 10e9 < one < 0.6 * all_three


@pytest.mark.parametrize("per_class, context", [(False, False), (True, True)])
def test_parameters_are_counted_as_they_are_built(per_class, context):
    network = build("tiny", 7, background=True, per_class=per_class, context=context)
    built = sum(part.count_params() for part in (network.features, network.classifier, network.regressor))
    assert sum(PRESETS["tiny"].parameters(7, True, per_class, context).values()) == built


class Dead(BaseException):
    """Stands for SIGKILL."""


def pair(run: Path) -> tuple[str, str]:
    return json.loads((run / "config.json").read_text()), (run / "weights" / "w").read_text()


@pytest.mark.parametrize("fatal", range(1, 9))
def test_weights_and_configuration_are_of_one_stage_wherever_a_process_dies(tmp_path, monkeypatch, fatal):
    """Die at each of the calls that change the folder, before it has its effect."""

    def save(text: str):
        def into(folder: Path) -> None:
            folder.mkdir()
            (folder / "w").write_text(text)

        return into

    run_folder.commit(tmp_path, "old", save("old"))
    calls = 0

    def deadly(function):
        def called(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == fatal:
                raise Dead
            return function(*args, **kwargs)

        return called

    with monkeypatch.context() as patch:
        for owner, name in (
            (Path, "mkdir"),
            (Path, "write_text"),
            (Path, "rename"),
            (os, "replace"),
            (shutil, "rmtree"),
        ):
            patch.setattr(owner, name, deadly(getattr(owner, name)))
        try:
            run_folder.commit(tmp_path, "new", save("new"))
        except Dead:
            pass
        else:
            assert calls < fatal
    died = calls
    run_folder.recover(tmp_path)
    assert pair(tmp_path) == (("new", "new") if died >= 7 else ("old", "old"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "weights"]
    run_folder.commit(tmp_path, "newer", save("newer"))
    assert pair(tmp_path) == ("newer", "newer")


def test_the_first_stage_leaves_no_weights_without_their_configuration(tmp_path, monkeypatch):
    """A process that dies before the last rename: with weights there, and none before."""
    (tmp_path / "config.json").write_text(json.dumps("begun"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_folder.commit(tmp_path, "done", lambda folder: folder.mkdir())
    run_folder.recover(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    run_folder.commit(tmp_path, "done", lambda folder: folder.mkdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "weights"]


@pytest.mark.parametrize(("steps", "ends"), [(7, [2, 4, 7]), (8, [2, 4, 8]), (9, [3, 6, 9])])
def test_the_last_epoch_ends_with_the_stage(steps, ends, tmp_path):
    model = TRAINED_TASKS["classification"].model(build("tiny", 2), RECIPE)
    checkpoints = Checkpoints(tmp_path, model, replace(RECIPE.classification, steps=steps, epochs=3))
    found = []
    for step in range(1, steps + 1):
        checkpoints._position.step = step
        found += [step] * checkpoints.at_epoch_end
    assert found == ends


@pytest.mark.parametrize("position", ["[3, 0, [0, 1, 2], 5]", "[3, 0, [0, 1]]"])
def test_a_checkpoint_of_an_earlier_version_is_one_line(position, tmp_path, monkeypatch):
    model = TRAINED_TASKS["localization"].model(build("tiny", 2), RECIPE)
    monkeypatch.setattr(Position, "serialize", lambda self: position)
    Checkpoints(tmp_path, model, SCHEDULE).save()
    with pytest.raises(ValueError, match=r"^expected a checkpoint [^\n]*earlier version: use another --run$"):
        Checkpoints(tmp_path, model, SCHEDULE).resume()


def state(model: keras.Model) -> list[keras.Variable]:
    return [*model.weights, *model.optimizer.variables, *model.random_states]


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


@pytest.fixture
def two_checkpoints(tmp_path) -> list[np.ndarray]:
    """Write those of steps 3 and 5, of which all differs, and give the state of the first."""
    model = TRAINED_TASKS["classification"].model(build("tiny", 2), RECIPE)
    checkpoints = Checkpoints(tmp_path, model, SCHEDULE)
    first = [variable.numpy().copy() for variable in state(model)]
    for step in (3, 5):
        checkpoints._position.step = step
        checkpoints.save()
        for variable in state(model):
            variable.assign(variable + 1)
    return first


@pytest.mark.parametrize("damaged, damage", [("data-00000-of-00001", cut_off), ("index", Path.unlink)])
def test_the_checkpoint_before_a_damaged_one_is_all_that_is_restored(
    two_checkpoints, damaged, damage, tmp_path, caplog
):
    damage(tmp_path / f"ckpt-5.{damaged}")
    model = TRAINED_TASKS["classification"].model(build("tiny", 2), RECIPE)
    checkpoints = Checkpoints(tmp_path, model, SCHEDULE)
    assert checkpoints.resume() == 3
    for found, wanted in zip(state(model), two_checkpoints, strict=True):
        np.testing.assert_array_equal(found.numpy(), wanted, err_msg=found.path)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "training.run.checkpoints"]
    assert re.fullmatch(r"'[^']*ckpt-5' cannot be read \([^\n]*\): resuming from the checkpoint before", line)
    checkpoints._position.step = 5  # and written again, it is as good as any
    checkpoints.save()
    assert Checkpoints(tmp_path, model, SCHEDULE).resume() == 5


def test_where_all_checkpoints_are_damaged_it_is_one_line(two_checkpoints, tmp_path):
    for path in tmp_path.glob("*.data-*"):
        cut_off(path)
    checkpoints = Checkpoints(tmp_path, TRAINED_TASKS["classification"].model(build("tiny", 2), RECIPE), SCHEDULE)
    with pytest.raises(ValueError, match=r"^expected a checkpoint [^\n]*ckpt-5'; [^\n]*: use another --run$"):
        checkpoints.resume()
