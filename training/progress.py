"""How far long work has come: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

FIRST_SECONDS = 10.0  # until the first line
GROWTH = 1.5  # each line waits for so many times the time until the one before: a night's work is some twenty lines

Item = TypeVar("Item")
log = logging.getLogger(__name__)


def progress(items: Iterable[Item], title: str, total: int | None = None, quiet: bool = False) -> Iterator[Item]:
    """Pass images on, and tell on stderr how many there were: by a bar, or by the log's lines off a terminal.

    Args:
        items: Images of any kind.
        title: What is being done.
        total: How many there will be, if known.
        quiet: Tell nothing.
    """
    if quiet or sys.stderr.isatty():
        yield from tqdm(items, desc=title, unit=" images", total=total, disable=quiet)
        return
    began, due, count = time.monotonic(), FIRST_SECONDS, 0
    of = f" of {total}" if total is not None else ""
    for count, item in enumerate(items, start=1):
        yield item
        seconds = time.monotonic() - began
        if seconds >= due:
            log.info("%s: %d%s images, %.1f a second", title, count, of, count / seconds)
            due = seconds * GROWTH
    log.info("%s: %d images in %.1f s", title, count, time.monotonic() - began)
