"""The recipes of the paper's networks: each builds its network and trains all stages for two steps."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from overfeat_tf.models.model import TASKS

NAMES = ("imagenet-fast", "imagenet-accurate", "voc-fast", "voc-accurate", "coco-fast", "coco-accurate", "tinyimagenet")
SCRIPT = Path(__file__).parents[1] / "full_recipe.py"


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_two_steps_of_each_stage(name, tmp_path):
    """Takes a minute, and some gigabytes of memory: in a process of its own, since training keeps what it frees."""
    done = subprocess.run([sys.executable, SCRIPT, name, tmp_path], capture_output=True, text=True)
    shutil.rmtree(tmp_path)
    assert done.returncode == 0, done.stderr
    tasks, losses = json.loads(done.stdout)
    assert tuple(tasks) == TASKS and len(losses) == len(TASKS)
    assert all(math.isfinite(logs["loss"]) for logs in losses.values())
