"""A run killed at any moment ends, taken up, with the weights of an unbroken one."""

import signal
import subprocess
import sys
from pathlib import Path

import h5py
import killed_run
import numpy as np
import pytest

# One death after another: as a step ends, midway in the writing of checkpoints and of what a stage leaves.
DEATHS = [
    (99, "step", 5),  # before the first checkpoint
    (0, "step", 8),
    (0, "written", 3),
    (99, "step", 3),
    (99, "judging", 1),  # the best weights are there; nothing says so yet
    (0, "removing", 2),
    (0, "renaming", 1),  # at the end of the first stage
    (99, "replacing", 1),
    (0, "step", 11),
    (99, "renaming", 1),  # the weights before are aside, the new ones not yet in place
    (0, "renaming", 2),
    (0, "step", 10),
    (99, "step", 1),
]


def run(folder: Path, *arguments) -> int:
    command = [sys.executable, killed_run.__file__, str(folder), *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode in (0, -signal.SIGKILL, -signal.SIGTERM), done.stderr
    return done.returncode


def weights(folder: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def keep(name: str, item) -> None:
        if isinstance(item, h5py.Dataset):
            found[f"{path.relative_to(folder)}/{name}"] = np.array(item)

    for path in sorted((folder / "weights").rglob("*.h5")):  # the best ones, and the last ones where these are others
        with h5py.File(path) as file:
            file.visititems(keep)
    return found


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """An unbroken run."""
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    assert run(folder, 99) == 0
    return folder


def assert_same(broken: Path, unbroken: Path) -> None:
    expected, found = weights(unbroken), weights(broken)
    assert expected.keys() == found.keys() and len(expected) > 10
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
    assert sorted(path.name for path in broken.iterdir()) == sorted(path.name for path in unbroken.iterdir())


@pytest.mark.long
def test_a_run_killed_again_and_again_ends_with_the_weights_of_an_unbroken_one(tmp_path, unbroken):
    deaths = [run(tmp_path / "killed", *death) for death in DEATHS]
    assert run(tmp_path / "killed", 0) == 0
    assert deaths.count(-signal.SIGKILL) == len(DEATHS)
    assert_same(tmp_path / "killed", unbroken)


@pytest.mark.long
def test_a_run_asked_to_end_loses_no_step(tmp_path, unbroken):
    """Checkpoints are too far apart to be written otherwise: the third process does step 8, and what is after."""
    folder = tmp_path / "asked"
    for count, step in ((4, 4), (3, 7)):
        assert run(folder, 99, "step", count, int(signal.SIGTERM)) == -signal.SIGTERM
        assert list((folder / "checkpoints" / "classification").glob(f"ckpt-{step}.index"))
    assert run(folder, 99) == 0
    assert_same(folder, unbroken)
