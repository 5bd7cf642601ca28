"""The results of a benchmark: ratios with their range over repetitions, as a table and as JSON."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

log = logging.getLogger(__name__)


@dataclass
class Report:
    """The ratios of one benchmark.

    Attributes:
        name: The benchmark's name.
        machine: What `machine.describe_machine` returns.
        samples: The values of each ratio, one per repetition.
        remarks: What each ratio compares.
        goals: (sign, figure) of each ratio that has a goal; the sign is ">=" or "<=".
        tables: More tables in Markdown, shown after the ratios.
    """

    name: str
    machine: dict
    samples: dict[str, list[float]] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    goals: dict[str, tuple[str, float]] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)

    def add(self, ratio: str, values: Sequence[float], remark: str, goal: tuple[str, float] | None = None) -> None:
        """Add a ratio's values, one per repetition."""
        self.samples[ratio], self.remarks[ratio] = list(values), remark
        if goal:
            self.goals[ratio] = goal

    def as_dict(self) -> dict:
        """Return medians, ranges (least and greatest), repetitions and machine, in JSON's types."""
        return {
            self.name: {
                "ratios": {ratio: median(values) for ratio, values in self.samples.items()},
                "spread": {ratio: [min(values), max(values)] for ratio, values in self.samples.items()},
                "repetitions": {ratio: len(values) for ratio, values in self.samples.items()},
                "remarks": self.remarks,
                "tables": self.tables,
                "machine": self.machine,
            }
        }

    def table(self) -> str:
        """Render the ratios and the other tables in Markdown."""
        rows = []
        for ratio, values in self.samples.items():
            goal = "{} {}".format(*self.goals[ratio]) if ratio in self.goals else ""
            extent = f"{min(values):.3f} to {max(values):.3f}"
            rows.append((ratio, f"{median(values):.3f}", extent, len(values), goal, self.remarks[ratio]))
        machine = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        ratios = markdown_table(("ratio", "median", "least to greatest", "repetitions", "goal", "what"), rows)
        return "\n\n".join([machine, ratios, *self.tables])


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Render a table in Markdown."""
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (titles, ["---"] * len(titles), *rows))


def collect(measured: Iterable[dict[str, float]], repetitions: int) -> dict[str, list[float]]:
    """Log the ratios of each repetition as they come; return the values of each ratio."""
    samples: dict[str, list[float]] = {}
    for number, ratios in enumerate(measured, start=1):
        log.info("repetition %d of %d: %s", number, repetitions, ", ".join(f"{k} {v:.4f}" for k, v in ratios.items()))
        for ratio, value in ratios.items():
            samples.setdefault(ratio, []).append(value)
    return samples
