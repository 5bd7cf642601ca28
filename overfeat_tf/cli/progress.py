"""How far a verb has come with its images: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from pathlib import Path

from tqdm import tqdm

LINE_EVERY = 10.0  # seconds between plain lines


class Progress:
    """A bar on a terminal, a plain line now and then elsewhere; a context, for what stays on the terminal."""

    def __init__(self, total: int):
        self._bar = tqdm(total=total, unit=" images", disable=None)
        self._total, self._done = total, 0
        self._start = self._said = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def report(self, file: Path, problem: str) -> None:
        """Say what is wrong with a file, on stderr."""
        tqdm.write(f"overfeat: {file}: {problem}", file=sys.stderr)

    def advance(self, count: int) -> None:
        """Count files as done."""
        self._bar.update(count)
        self._done += count
        now = time.monotonic()
        if self._bar.disable and now - self._said >= LINE_EVERY:
            self._said = now
            rate = self._done / (now - self._start)
            print(f"{self._done} of {self._total} images, {rate:.1f} a second", file=sys.stderr)
