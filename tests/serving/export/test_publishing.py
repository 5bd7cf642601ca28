"""A version appears whole or not at all, whoever is killed and whoever else exports."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from serving.export.publishing import check_version, publish, staging_dir, taken_versions

ROOT = Path(__file__).parents[3]
# Exports files in place of a SavedModel; says where it is and waits to be told on.
WRITER = """
import sys
from pathlib import Path
from serving.export.publishing import staging_dir, publish

def reached(step):
    print(step, flush=True)
    sys.stdin.readline()

base = Path(sys.argv[1])
for _ in range(int(sys.argv[2])):
    with staging_dir(base) as folder:
        reached("made")
        (folder / "saved_model.pb").write_text("half")
        reached("half")
        (folder / "saved_model.pb").write_text("whole")

        def describe(number):
            (folder / "MODEL_CARD.md").write_text(str(number))
            reached("described")

        publish(folder, base, None, describe)
        reached("published")
"""


def _writer(base: Path, times: int = 1) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(base), str(times)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def _go_to(writer: subprocess.Popen, step: str) -> None:
    for line in writer.stdout:
        if line.strip() == step:
            return
        writer.stdin.write("\n")
        writer.stdin.flush()
    raise AssertionError(f"the writer never came to '{step}'")


def _publish(base: Path, version: int | None = None) -> Path:
    with staging_dir(base) as folder:
        (folder / "saved_model.pb").write_text("whole")
        return publish(folder, base, version, lambda number: None)


def test_the_next_version_is_the_one_after_the_highest(tmp_path):
    for name in ("1", "7", "3.partial", ".9", "x", "٣"):
        (tmp_path / name).mkdir()
    assert taken_versions(tmp_path) == [1, 7]
    assert _publish(tmp_path).name == "8"
    assert _publish(tmp_path, 3).name == "3"  # a gap, if asked for
    assert _publish(tmp_path).name == "9"
    for version in (0, -1, 7):
        with pytest.raises(ValueError, match="expected a new version from 1 to"):
            check_version(tmp_path, version)


@pytest.mark.parametrize("step", ["made", "half", "described"])
def test_a_killed_export_leaves_nothing_that_a_server_would_pick_up(tmp_path, step):
    base = tmp_path / "m"
    with _writer(base) as writer:
        _go_to(writer, step)
        writer.send_signal(signal.SIGKILL)
    assert taken_versions(base) == []
    (left,) = base.iterdir()
    assert left.name.startswith(".")
    assert _publish(base).name == "1"  # and the next one clears away what was left
    assert [path.name for path in base.iterdir()] == ["1"]


def test_one_that_is_killed_after_the_last_step_is_whole(tmp_path):
    with _writer(tmp_path) as writer:
        _go_to(writer, "published")
        writer.send_signal(signal.SIGKILL)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert (tmp_path / "1" / "saved_model.pb").read_text() == "whole"


def test_an_export_under_way_is_left_alone_by_others(tmp_path):
    with _writer(tmp_path) as writer:
        _go_to(writer, "half")
        assert _publish(tmp_path).name == "1"
        writer.communicate("\n\n\n\n")
    assert writer.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
    assert (tmp_path / "2" / "MODEL_CARD.md").read_text() == "2"  # described by the number that it got


def test_exports_at_the_same_time_get_numbers_of_their_own(tmp_path):
    writers = [_writer(tmp_path, times=5) for _ in range(3)]
    for writer in writers:
        writer.stdin.write("\n" * 100)
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    assert taken_versions(tmp_path) == list(range(1, 16)) and len(list(tmp_path.iterdir())) == 15
    for path in tmp_path.iterdir():
        assert (path / "saved_model.pb").read_text() == "whole"
        assert (path / "MODEL_CARD.md").read_text() == path.name


def test_a_version_that_another_took_meanwhile_is_refused(tmp_path):
    with pytest.raises(ValueError, match="got 4"), staging_dir(tmp_path) as folder:
        (tmp_path / "4").mkdir()
        publish(folder, tmp_path, 4, lambda number: None)
    assert [path.name for path in tmp_path.iterdir()] == ["4"]


def test_a_folder_that_another_export_has_just_removed_is_passed_over(tmp_path, monkeypatch):
    glob, gone = Path.glob, tmp_path / ".gone.partial"
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [*glob(self, pattern), gone])
    with staging_dir(tmp_path) as folder:
        assert folder.is_dir()


def test_other_users_may_read_what_the_folder_lets_them(tmp_path):
    (tmp_path / "m").mkdir(mode=0o755)
    assert _publish(tmp_path / "m").stat().st_mode & 0o777 == 0o755
