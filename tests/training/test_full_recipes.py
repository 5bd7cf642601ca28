"""The recipes of the paper's networks: each builds its network and trains all stages for two steps."""

import shutil

import numpy as np
import pytest
from small_source import few_digits

from overfeat_tf.model import TASKS
from training.boards import Weights
from training.recipes import get_recipe, override
from training.train import train

NAMES = ("imagenet-fast", "imagenet-accurate", "voc-fast", "voc-accurate", "coco-fast", "coco-accurate", "tinyimagenet")
LITTLE = ("steps=2", "epochs=1", "batch=2", "drop_epochs=()")


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_two_steps_of_each_stage(name, tmp_path, monkeypatch):
    """Takes some gigabytes of disk for a network, and a minute."""
    losses = {}
    monkeypatch.setattr(Weights, "on_epoch_end", lambda self, epoch, logs: losses.update({self.model.name: logs}))
    changes = [f"{stage}.{change}" for stage in TASKS for change in LITTLE]
    recipe = override(get_recipe(name), [*changes, "val_split=none", "views.per_image=1"])
    model = train(recipe, few_digits(4, 1), tmp_path)
    shutil.rmtree(tmp_path)
    assert model.tasks == TASKS and len(losses) == len(TASKS)
    assert all(np.isfinite(logs["loss"]) for logs in losses.values())
