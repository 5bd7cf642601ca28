"""All stages of a recipe for two steps each: `full_recipe.py NAME RUN` prints the tasks and losses it ends with."""

import json
import sys
from pathlib import Path

from small_source import few_digits

from overfeat_tf.models.model import TASKS
from training.fit.tensorboard import Weights
from training.fit.train import train
from training.recipes import get_recipe, override

LITTLE = ("steps=2", "epochs=1", "batch=2", "drop_epochs=()")


def note(board: Weights, epoch: int, logs: dict) -> None:
    """Keep a stage's losses, in place of a board of a gigabyte of weights."""
    losses[board.model.name] = {key: float(value) for key, value in logs.items()}


if __name__ == "__main__":
    losses: dict[str, dict[str, float]] = {}
    Weights.on_epoch_end = note
    changes = [f"{stage}.{change}" for stage in TASKS for change in LITTLE]
    recipe = override(get_recipe(sys.argv[1]), [*changes, "val_split=none", "views.per_image=1"])
    model = train(recipe, few_digits(4, 1), Path(sys.argv[2])).model
    print(json.dumps([model.tasks, losses]))
