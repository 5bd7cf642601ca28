"""Checks of settings and options, by the names that users set them by, and the nearest valid name of a wrong one."""

import difflib
import math
from collections.abc import Collection, Iterable


def suggest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'NAME'?" with the known name nearest to `name`, or "" where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def check_choice(name: str, value: str, known: Collection[str]) -> None:
    """Raise ValueError for a value that is not among those known."""
    if value not in known:
        raise ValueError(f"expected {name} to be one of {', '.join(known)}; got '{value}'")


def check_range(name: str, value: object, within: bool, limits: str) -> None:
    """Raise ValueError, naming the limits, for a value that is not within them, or not finite."""
    if not within:
        raise ValueError(f"expected {name} to be {limits}; got {value}")
    numbers = value if isinstance(value, tuple) else (value,)
    if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
        raise ValueError(f"expected {name} to be {limits}, and finite; got {value}")
