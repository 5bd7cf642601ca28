"""A run of all stages that kills itself: `killed_run.py RUN SECONDS [MOMENT COUNT [SIGNAL]]`.

Writes checkpoints SECONDS apart at least, and sends itself SIGKILL, or SIGNAL, as MOMENT comes for the COUNTth time.
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import small_run
import tensorflow as tf
from small_source import few_digits

from overfeat_tf.models.model import CONFIG, TASKS
from training.fit.train import train
from training.run import checkpoints
from training.run import folder as run_folder

STEPS = 12  # of 4 views, mixed over 8 steps
SCHEDULE = replace(small_run.SCHEDULE, steps=STEPS, drops=(0.4,))
STAGES = dict.fromkeys(TASKS, SCHEDULE)
# Random in every stage.
RECIPE = replace(small_run.RECIPE, **STAGES, negatives="random", through_features=True, ema=0.9)
MOMENTS = {
    "step": (checkpoints.Checkpoints, "on_train_batch_end", ""),
    "written": (tf.train.CheckpointManager, "_record_state", ""),  # a checkpoint is there; nothing points to it yet
    "removing": (tf.train.CheckpointManager, "_sweep", ""),  # the new one is pointed to, the oldest still there
    "judging": (run_folder.os, "replace", "best.json"),  # the record of the best weights is beside the old one
    "replacing": (run_folder.os, "replace", CONFIG),  # the configuration is beside the old one, the weights in place
    "renaming": (Path, "rename", ""),
}


def die_at(moment: str, count: int, number: int = signal.SIGKILL) -> None:
    """Die, or ask for it, as the function behind a moment is called for the count-th time."""
    owner, name, target = MOMENTS[moment]
    function, calls = getattr(owner, name), [0]

    def deadly(*args, **kwargs):
        calls[0] += not target or Path(args[1]).name == target
        if calls[0] == count:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    setattr(owner, name, deadly)


if __name__ == "__main__":
    checkpoints.LEAST_SECONDS, checkpoints.SHARE = float(sys.argv[2]), 1e9
    if len(sys.argv) > 3:
        die_at(sys.argv[3], *map(int, sys.argv[4:]))
    train(RECIPE, few_digits(9, 2), Path(sys.argv[1]))
