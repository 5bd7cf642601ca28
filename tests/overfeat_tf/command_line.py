"""`overfeat` as a person types it."""

import sys

import pytest

from overfeat_tf.cli import main


def run(monkeypatch: pytest.MonkeyPatch, *arguments) -> int:
    """Run `overfeat` with arguments; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["overfeat", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)
