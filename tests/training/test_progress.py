"""The progress of long work: plain lines outside a terminal, less and less often, and nothing when quiet."""

import logging
import sys

import pytest

from training import progress as module
from training.progress import log_lines, progress


@pytest.fixture
def clock(monkeypatch):
    """Let every image take so many seconds."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def slow(count: int, seconds: float):
        for number in range(count):
            now[0] += seconds
            yield number

    return slow


def test_lines_come_ever_more_seldom_and_one_at_the_end(clock, caplog):
    caplog.set_level(logging.INFO, module.__name__)
    assert list(progress(clock(100, 1.0), "evaluate val", 100)) == list(range(100))
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "evaluate val: 10 of 100 images, 1.0 a second"
    assert lines[-1] == "evaluate val: 100 images in 100.0 s" and 5 <= len(lines) <= 8


def test_quick_work_has_one_line_and_quiet_work_none(clock, caplog):
    caplog.set_level(logging.INFO, module.__name__)
    assert len(list(progress(clock(5, 0.1), "evaluate val"))) == 5
    assert [record.getMessage() for record in caplog.records] == ["evaluate val: 5 images in 0.5 s"]
    caplog.clear()
    assert len(list(progress(clock(50, 1.0), "evaluate val", quiet=True))) == 50 and not caplog.records


def test_training_from_python_shows_its_lines_unless_the_program_logs_itself(monkeypatch, capsys):
    log = logging.getLogger("training.fit.plan")
    with log_lines():  # pytest has configured logging
        log.info("seen by its handlers alone")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with log_lines():
        logging.basicConfig(stream=sys.stdout)  # as some libraries do when they first log
        log.info("data: 3 images")
    log.info("after")
    assert capsys.readouterr().out == "data: 3 images\n"
