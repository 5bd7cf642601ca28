"""A folder that shows how good a model is: report.md with tables and pictures.

Pictures are drawn without pyplot's global state.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from training.evaluation.metrics import Answer
from training.evaluation.recall import GROUP_FIGURES, GROUPS
from training.sources.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "report.md"
DPI = 110
LONGEST_NAME = 22  # characters of a class in a picture


@dataclass(frozen=True)
class Exhibit:
    """A piece of a report: a title, a picture's file name in the report's folder, and Markdown."""

    title: str
    picture: str
    text: str = ""


class Observer(Protocol):
    """Watches records and their answers go by, and draws what it has seen into a folder."""

    def process(self, record: Record, answer: Answer) -> None: ...

    def draw(self, folder: Path) -> Iterator[Exhibit]: ...


class Report:
    """The observers of an evaluation, and what they draw in the end."""

    def __init__(
        self,
        folder: Path,
        kinds: Mapping[str, Sequence[Callable[[Sequence[str], float | None], Observer]]],
        class_names: Sequence[str],
        display_threshold: float | None = None,
    ):
        """Make the folder, before hours of inference rather than after, and the observers of each protocol.

        Raises:
            OSError: the folder can't be made.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._observers = {name: [kind(class_names, display_threshold) for kind in kinds[name]] for name in kinds}

    @property
    def callbacks(self) -> Mapping[str, Sequence[Callable[[Record, Answer], None]]]:
        """What `evaluate` calls with each record and answer, by protocol."""
        return {name: [one.process for one in observers] for name, observers in self._observers.items()}

    def write(self, facts: Mapping[str, object], tables: str, more: Iterable[Exhibit] = ()) -> list[str]:
        """Write the page and its pictures.

        Args:
            facts: What was scored on what, a line each.
            tables: The figures, in Markdown.
            more: Exhibits beside the observers'.

        Returns:
            The pictures' file names.
        """
        drawn = [one for kind in self._observers.values() for observer in kind for one in observer.draw(self._folder)]
        exhibits = [*more, *drawn]
        described = "\n".join(f"- {name}: {_plain(value)}" for name, value in facts.items())
        parts = ["# Evaluation", described, "## Figures", tables]
        for exhibit in exhibits:
            parts += [f"## {exhibit.title}", *([exhibit.text] if exhibit.text else [])]
            parts.append(f"![{exhibit.title}]({exhibit.picture})")
        # A path that is not UTF-8 is shown escaped.
        (self._folder / PAGE).write_text("\n\n".join(parts) + "\n", "utf-8", "backslashreplace")
        return [exhibit.picture for exhibit in exhibits]


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_plain(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(_plain, value))
    return str(value)


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


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Render a table whose columns are as wide as their widest cell; all but the first are set to the right."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (titles, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*escaped, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(escaped[0]), line(rule), *map(line, escaped[1:])])


def figure_tables(figures: Mapping[str, float]) -> str:
    """Render what `evaluate` gives: overall figures, those by size and shape, and those of each class.

    The reliability table is left out: a report shows it with its diagram.
    """
    overall = [[name, format_value(value)] for name, value in figures.items() if "/" not in name]
    tables = [markdown_table(["figure", "value"], overall)]
    kinds = list(dict.fromkeys(name.partition("/")[0] for name in figures if "/" in name))
    if by_group := [kind for kind in GROUP_FIGURES if kind in kinds]:
        tables.append(_table("objects by", by_group, GROUPS, figures))
    if by_class := [kind for kind in kinds if kind not in (*GROUP_FIGURES, "reliability")]:
        classes = dict.fromkeys(name.partition("/")[2] for name in figures if name.partition("/")[0] in by_class)
        tables.append(_table("class", by_class, list(classes), figures))
    return "\n\n".join(tables)


def _table(title: str, kinds: Sequence[str], names: Sequence[str], figures: Mapping[str, float]) -> str:
    rows = [[name, *(format_value(figures.get(f"{kind}/{name}", math.nan)) for kind in kinds)] for name in names]
    return markdown_table([title, *kinds], rows)


def format_value(value: float) -> str:
    """Format a figure with four decimals, a count without, and "-" for one that there is not."""
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4f}"
    return str(value)
