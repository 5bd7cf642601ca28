"""The public names: what `dir` and `help` show, and what is said where another file has the name of a package."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import overfeat_tf as of

ROOT = Path(__file__).resolve().parents[2]


def test_dir_lists_the_public_names_and_each_is_there():
    assert {name for name in dir(of) if not name.startswith("_")} == set(of.__all__)
    assert all(getattr(of, name) is not None for name in of.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+", of.__version__)
    assert all((ROOT / package / "py.typed").is_file() for package in ("overfeat_tf", "training", "serving"))


@pytest.mark.parametrize(
    "name", [*(name for name in of.__all__ if name[0].islower() and name != "datasets"), "datasets.open"]
)
def test_help_is_complete_by_itself(name):
    function = of
    for part in name.split("."):
        function = getattr(function, part)
    text = inspect.getdoc(function)
    assert "see `model" not in text.lower()  # nothing else has to be read
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"^    [\w, ]*\b{parameter}\b[\w, ]*: ", text, re.MULTILINE), parameter


@pytest.mark.parametrize("name", ["training", "serving"])
@pytest.mark.parametrize("command", [["-c", "import overfeat_tf; overfeat_tf.train"], ["-m", "overfeat_tf.cli", "-h"]])
def test_a_file_that_shadows_a_package_is_named(name, command, tmp_path):
    (tmp_path / f"{name}.py").touch()
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": ""}
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=path, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == (2 if command[0] == "-m" else 1)
    assert (
        f"'{tmp_path / name}.py' comes first and has its name: rename it, or start Python from another folder" in last
    )
