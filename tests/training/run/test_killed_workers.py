"""A run of two workers, one of which is killed again and again, ends with the weights of an unbroken one."""

import random
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import worker_run
from test_killed import weights
from workers import start_workers

KILLS = 10
MOST_STEPS = 8  # that a run takes before it is killed


def killed(folder: Path, rng: random.Random) -> None:
    """Start the workers, and kill one of them at a random moment: once they take steps, the other one ends too."""
    workers = start_workers(worker_run.__file__, folder)
    victim, steps = rng.choice(workers), rng.randrange(MOST_STEPS)
    for _ in range(steps):  # between the lines of the log
        assert next((line for line in victim.stdout if line == "step\n"), None), victim.stderr.read()[-3000:]
    time.sleep(rng.random() * (0.3 if steps else 10))
    victim.kill()
    for worker in workers:
        if not steps:  # the other one may wait for this one to come
            worker.kill()
        _, error = worker.communicate(timeout=120)
        assert worker.returncode not in (0, None)
        assert worker is victim or not steps or "one has ended" in error or "coordination" in error, error[-3000:]


def ended(folder: Path) -> None:
    for worker in start_workers(worker_run.__file__, folder):
        try:
            _, error = worker.communicate(timeout=400)
        except subprocess.TimeoutExpired:
            worker.kill()
            raise
        assert worker.returncode == 0, error[-3000:]


@pytest.mark.long
def test_a_run_whose_workers_are_killed_ends_with_the_weights_of_an_unbroken_one(tmp_path):
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(KILLS):
        killed(tmp_path / "killed", rng)
    assert not (tmp_path / "killed" / "weights" / "regressor.weights.h5").exists()  # it was not over yet
    ended(tmp_path / "killed")
    ended(tmp_path / "unbroken")
    expected, found = weights(tmp_path / "unbroken"), weights(tmp_path / "killed")
    assert expected.keys() == found.keys() and len(expected) > 10
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
    apart = max(float(np.abs(found[name] - values).max()) for name, values in expected.items())
    print(f"weights differ by {apart} at most")
