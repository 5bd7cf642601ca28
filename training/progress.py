"""Progress of long work: a bar on a terminal, lines of the log elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

FIRST_SECONDS = 10.0  # until the first line
GROWTH = 1.5  # each line waits for so many times the time until the one before: a night's work is some twenty lines

Item = TypeVar("Item")
log = logging.getLogger(__name__)


@contextmanager
def log_lines() -> Iterator[None]:
    """Write the log's lines to stdout, as Keras does, where the program has not configured logging."""
    handler, loggers = logging.StreamHandler(sys.stdout), [logging.getLogger(n) for n in ("training", "overfeat_tf")]
    loggers = [each for each in loggers if not each.hasHandlers() and each.level == logging.NOTSET]
    for each in loggers:
        each.addHandler(handler)
        each.setLevel(logging.INFO)
        each.propagate = False  # a library that configures the root logger meanwhile would write each line again
    try:
        yield
    finally:
        for each in loggers:
            each.removeHandler(handler)
            each.setLevel(logging.NOTSET)
            each.propagate = True


class Progress:
    """Count images as done, by a bar on a terminal or by lines of the log elsewhere; a context.

    Args:
        total: How many there will be, if known.
        title: What is being done.
        quiet: Show nothing.
    """

    def __init__(self, total: int | None = None, title: str = "", quiet: bool = False):
        self._bar = tqdm(desc=title or None, unit=" images", total=total, disable=quiet or not sys.stderr.isatty())
        self._before, self._of = f"{title}: " if title else "", f" of {total}" if total is not None else ""
        self._logs = self._bar.disable and not quiet
        self._began, self._due, self._done = time.monotonic(), FIRST_SECONDS, 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def advance(self, count: int = 1) -> None:
        """Count images as done."""
        self._bar.update(count)
        self._done += count
        seconds = time.monotonic() - self._began
        if self._logs and seconds >= self._due:
            rate = self._done / max(seconds, 1e-9)
            log.info("%s%d%s images, %.1f a second", self._before, self._done, self._of, rate)
            self._due = seconds * GROWTH

    def report(self, file: Path, problem: str) -> None:
        """Say on stderr what is wrong with a file."""
        tqdm.write(f"overfeat: {file}: {problem}", file=sys.stderr)

    def finish(self) -> None:
        """Say in the log how long it took."""
        if self._logs:
            log.info("%s%d images in %.1f s", self._before, self._done, time.monotonic() - self._began)


def progress(items: Iterable[Item], title: str, total: int | None = None, quiet: bool = False) -> Iterator[Item]:
    """Pass images on, and count them by `Progress`."""
    with Progress(total, title, quiet) as bar:
        for item in items:
            yield item
            bar.advance()
        bar.finish()
