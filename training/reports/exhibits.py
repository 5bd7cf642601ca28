"""What reports are made of, and how a figure of matplotlib's becomes a file without pyplot's global state."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from training.metrics import Answer
from training.sources.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110
LONGEST_NAME = 22  # characters of a class in a picture


@dataclass(frozen=True)
class Exhibit:
    """A piece of a report: a title, a picture's file name in the report's folder, and Markdown."""

    title: str
    picture: str | None = None
    text: str = ""


class Observer(Protocol):
    """Watches records and their answers go by, and draws what it has seen into a folder."""

    def process(self, record: Record, answer: Answer) -> None: ...

    def draw(self, folder: Path) -> Iterator[Exhibit]: ...


def figure(width: float, height: float) -> "Figure":
    """Make a figure of so many inches, whose parts keep out of each other's way."""
    from matplotlib.figure import Figure

    return Figure((width, height), dpi=DPI, layout="constrained")


def save(made: "Figure", path: Path) -> None:
    """Write a figure as PNG."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in a script that the font lacks
        made.savefig(path)


def shortened(name: str, longest: int = LONGEST_NAME) -> str:
    """Cut a long name."""
    return name if len(name) <= longest else name[: longest - 1].rstrip(" ,") + "…"


def literal(text: str) -> str:
    """Keep matplotlib from reading dollars as formulas."""
    return text.replace("$", r"\$")


def listed(names: Sequence[str]) -> str:
    """Join names, each once, the first three."""
    once = list(dict.fromkeys(names))
    return ", ".join(once[:3]) + (f" and {len(once) - 3} more" if len(once) > 3 else "")
