"""The lines of README that people copy: the training loop of one's own runs as it is written, with fewer steps."""

import re
from pathlib import Path

import overfeat_tf as of

README = Path(__file__).resolve().parents[2] / "README.md"
START, END = "from training.fit.losses import", ".save("


def own_loop() -> list[str]:
    """Return the lines of the training loop in README, from its imports to its last line."""
    lines = README.read_text().splitlines()
    (last,) = [number for number, line in enumerate(lines) if line.startswith("    of.Model(") and END in line]
    first = last
    while lines[first - 1].startswith("    "):
        first -= 1
    return [line[4:] for line in lines[first : last + 1]]


def test_the_training_loop_runs(tmp_path, monkeypatch):
    lines = own_loop()
    assert START in lines[2] and len(lines) <= 14
    code, changes = re.subn(r"steps_per_epoch=\d+, epochs=\d+", "steps_per_epoch=2, epochs=1", "\n".join(lines))
    assert changes == 1
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    assert set(names["model"].history.history) >= {"loss", "scores_loss", "boxes_loss"}
    saved = of.load(tmp_path / "runs" / "own")
    assert saved.tasks == ("detection",) and saved.labels == names["data"].class_names
