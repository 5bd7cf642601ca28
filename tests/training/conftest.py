"""What the tests of training share; pytest puts this folder, with its helper modules, on the path."""

import pytest

from training.fit import train as module


@pytest.fixture
def no_boards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit without TensorBoard's boards, for which each stage would trace a graph of inference of its own."""
    monkeypatch.setattr(module, "stage_boards", lambda *_: [])
