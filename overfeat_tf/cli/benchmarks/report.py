"""What a benchmark found: ratios with their spread, as a table and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass
class Report:
    """The ratios of one benchmark.

    Attributes:
        name: The benchmark's name.
        machine: What `machine.describe` gives.
        samples: For each ratio, one value for each repetition.
        remarks: For each ratio, what was measured against what.
        goals: For each ratio that has one, (sign, figure): ">=" or "<=".
        tables: Further tables in Markdown, to be shown after that of the ratios.
    """

    name: str
    machine: dict
    samples: dict[str, list[float]] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    goals: dict[str, tuple[str, float]] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)

    def add(self, ratio: str, values: Sequence[float], remark: str, goal: tuple[str, float] | None = None) -> None:
        """Add a ratio's values, one for each repetition."""
        self.samples[ratio], self.remarks[ratio] = list(values), remark
        if goal:
            self.goals[ratio] = goal

    def as_dict(self) -> dict:
        """Give medians, spreads (least and greatest), repetitions and machine, in JSON's types."""
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
        """Render the ratios, and what else there is, in Markdown."""
        lines = [
            ", ".join(f"{key} {value}" for key, value in self.machine.items()),
            "",
            "| ratio | median | least to greatest | repetitions | goal | what |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for ratio, values in self.samples.items():
            goal = "{} {}".format(*self.goals[ratio]) if ratio in self.goals else ""
            spread = f"{min(values):.3f} to {max(values):.3f}"
            lines.append(
                f"| {ratio} | {median(values):.3f} | {spread} | {len(values)} | {goal} | {self.remarks[ratio]} |"
            )
        return "\n".join(lines + [line for table in self.tables for line in ("", table)])
