"""Where images and boxes come from: one file a source, one record schema (`record.py`)."""

import difflib
from collections.abc import Callable
from pathlib import Path

from training.sources.digits import DigitScenes
from training.sources.record import SCHEMA, Record, Source, as_dataset
from training.sources.voc import VocFolder

# What the command line calls each: the part before the colon, and what to do with the rest.
OPENERS: dict[str, Callable[[str], Source]] = {
    "digits": lambda rest: DigitScenes(),
    "voc": lambda rest: VocFolder(Path(rest)),
}

__all__ = ["SCHEMA", "Record", "Source", "as_dataset", "open_source"]


def open_source(spec: str) -> Source:
    """Open a SOURCE of the command line: `digits` or `voc:DIR`.

    Raises:
        ValueError: no such source, or nothing there; one line.
    """
    kind, _, rest = spec.partition(":")
    if kind in OPENERS and bool(rest) == (kind != "digits"):
        return OPENERS[kind](rest)
    near = difflib.get_close_matches(kind, OPENERS, n=1)
    hint = f"; did you mean '{near[0]}'?" if near and near[0] != kind else ""
    raise ValueError(f"expected a data source, 'digits' or 'voc:DIR'; got '{spec}'{hint}")
