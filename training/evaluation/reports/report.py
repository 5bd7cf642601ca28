"""A folder that shows how good a model is: report.md with tables and pictures."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from training.evaluation.metrics import Answer
from training.evaluation.reports.exhibits import Exhibit
from training.sources.record import Record
from training.tasks import TRAINED_TASKS

PAGE = "report.md"


class Report:
    """The observers of an evaluation, and what they draw in the end."""

    def __init__(
        self,
        folder: Path,
        protocols: Sequence[str],
        class_names: Sequence[str],
        display_threshold: float | None = None,
    ):
        """Make the folder, before hours of inference rather than after.

        Raises:
            OSError: it can't be made.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._observers = {
            name: [kind(class_names, display_threshold) for kind in TRAINED_TASKS[name].observers] for name in protocols
        }

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
            parts += [f"![{exhibit.title}]({exhibit.picture})"] if exhibit.picture else []
        (self._folder / PAGE).write_text("\n\n".join(parts) + "\n")
        return [exhibit.picture for exhibit in exhibits if exhibit.picture]


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_plain(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(_plain, value))
    return str(value)
