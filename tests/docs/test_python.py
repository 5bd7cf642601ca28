"""docs/python.md: the training loop of one's own runs as it is written, with fewer steps."""

import re
from pathlib import Path

import overfeat_tf as of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


def own_loop() -> str:
    """Return the training loop on the page, from its imports to its last line."""
    lines = PAGE.read_text().split("own loss, optimizer and callbacks:", 1)[1].splitlines()[2:]
    last = next(number for number, line in enumerate(lines) if line and not line.startswith("    "))
    return "\n".join(line[4:] for line in lines[:last])


def test_the_training_loop_runs(tmp_path, monkeypatch):
    code, changes = re.subn(r"steps_per_epoch=\d+, epochs=\d+", "steps_per_epoch=2, epochs=1", own_loop())
    assert changes == 1 and code.startswith("import keras\n")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    assert set(names["model"].history.history) >= {"loss", "scores_loss", "boxes_loss"}
    saved = of.load(tmp_path / "runs" / "own")
    assert saved.tasks == ("detection",) and saved.labels == names["data"].class_names
