"""How the benchmarks measure and report: the machine, times, its matrix-product rate, and ratios with their range."""

import logging
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Self

import keras
import tensorflow as tf

from overfeat_tf.compute.choice import bfloat16_gain, processor

SIDE = 4096  # of the square matrices whose product is timed: large enough to run at the full rate

log = logging.getLogger(__name__)


def describe_machine() -> dict[str, str | int | float]:
    """Describe the machine and the libraries, in JSON's types."""
    return {
        "processor": processor(),
        "bfloat16_gain": round(bfloat16_gain(), 2),
        "cores": os.cpu_count() or 1,
        "gpus": len(tf.config.list_physical_devices("GPU")),
        "system": platform.platform(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }


@dataclass
class Report:
    """The ratios of one benchmark.

    Attributes:
        name: The benchmark's name.
        machine: What `describe_machine` returns.
        samples: The values of each ratio, one per repetition.
        remarks: What each ratio compares.
        goals: (sign, figure) of each ratio that has a goal; the sign is ">=" or "<=".
        tables: More tables in Markdown, shown after the ratios.
    """

    name: str
    machine: dict = field(default_factory=describe_machine)
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


def divide(one: float, other: float) -> float:
    """Divide two figures of quality; the ratio to 0, which a short training may give, is infinite."""
    return one / other if other else float("inf")


def time_call(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes. Its result must be on the host when it returns."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def time_in_turn(calls: Sequence[Callable[[], object]], repetitions: int) -> Iterator[tuple[float, ...]]:
    """Run each call once, then time all calls in turn; yield their seconds, once per repetition."""
    for call in calls:
        call()
    for _ in range(repetitions):
        yield tuple(map(time_call, calls))


def compare_rates(title: str, work: int, sides: Sequence[Callable[[], float]], repetitions: int) -> list[list[float]]:
    """Run the sides in turn and log their rates; return the first side's rate over that of each other side.

    Args:
        title: What the logged rates are of, such as "images/s from files, from memory".
        work: How many images or steps each side does.
        sides: Each does its work and returns its seconds.
        repetitions: Values of each ratio.
    """
    found = []
    for number in range(1, repetitions + 1):
        first, *others = (side() for side in sides)
        rates = ", ".join(f"{work / seconds:.4g}" for seconds in (first, *others))
        log.info("%s, %d of %d: %s", title, number, repetitions, rates)
        found.append([seconds / first for seconds in others])
    return [list(ratios) for ratios in zip(*found, strict=True)]


def computing_seconds() -> float:
    """Return the seconds that the processor's cores have worked for this process; wall-clock time with a GPU."""
    return time.perf_counter() if tf.config.list_physical_devices("GPU") else time.process_time()


class MatrixProduct:
    """A large matrix product: the rate that other arithmetic is compared with."""

    def __init__(self, dtype: str = "float32", side: int = SIDE) -> None:
        self._side = side
        one, other = tf.unstack(tf.cast(tf.random.stateless_normal([2, side, side], [1, 2]), dtype))
        self._run = tf.function(lambda: tf.reduce_max(tf.matmul(one, other)), autograph=False)
        self._run().numpy()

    def rate(self) -> float:
        """Time the product once; return multiply-adds per second."""
        return self._side**3 / time_call(lambda: self._run().numpy())

    def compare(self, work: int, call: Callable[[], object]) -> tuple[float, float]:
        """Time a call of `work` multiply-adds between two products; return its rate over theirs, and its seconds."""
        before, seconds, after = self.rate(), time_call(call), self.rate()
        return work / seconds / ((before + after) / 2), seconds


def run_module(module: str, *arguments: object) -> list[float]:
    """Run a module as a program in a fresh process; return the numbers that it prints.

    Raises:
        RuntimeError: it failed, or the system ended it, such as for its memory.
    """
    done = subprocess.run([sys.executable, "-m", module, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"expected `{module}` to end well; it ended with {done.returncode}: see its output above")
    return [float(number) for number in done.stdout.split()]


class LineProgram:
    """Runs a module in a fresh process, without a GPU, that answers lines with lines, for the duration of a `with`."""

    def __init__(self, module: str, *arguments: object):
        self._module, self._command = module, [sys.executable, "-m", module, *map(str, arguments)]

    def __enter__(self) -> Self:
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._command, env=environment, stdin=pipe, stdout=pipe, text=True, bufsize=1)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def write(self, line: object) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")

    def read(self) -> str:
        """Wait for a line.

        Raises:
            RuntimeError: the process has exited.
        """
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"expected a line of {self._module}; its process exited: see its output above")
        return line


def peak_memory_gb() -> float:
    """Return the peak resident memory of this process; nan where the system does not report it."""
    # Not getrusage: its peak starts at that of the process that this one was forked from.
    status = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text() if status.is_file() else "")
    return int(peak[1]) * 1024 / 1e9 if peak else float("nan")
