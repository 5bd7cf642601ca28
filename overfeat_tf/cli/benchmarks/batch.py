"""`overfeat benchmark batch`: `overfeat batch` against `predict`, two processes against one, and CPU time per image."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import NamedTuple

from overfeat_tf.cli.benchmarks.harness import Report, collect, markdown_table
from overfeat_tf.cli.benchmarks.inputs import encode_photograph, export_detector, random_detector, write_photographs
from overfeat_tf.compute.choice import choose_arithmetic

SCANNED = 3  # images whose CPU time is measured, after one that traces

log = logging.getLogger(__name__)


class Cost(NamedTuple):
    """What a program took: wall-clock and CPU seconds."""

    seconds: float
    cpu_seconds: float


def measure(preset: str, networks: Sequence[str], few: int, many: int, repetitions: int) -> Report:
    """Measure the programs on `few` and on `many` photographs; the difference is free of what starting takes.

    Args:
        preset: The network that both run, with random weights.
        networks: Presets and backbones whose CPU time per image is measured as well.
        few, many: Numbers of images.
        repetitions: Values of each ratio.

    Raises:
        ValueError: `many` is not more than `few`.
    """
    if many <= few:
        raise ValueError(f"expected more images in the longer runs (--many) than the {few} of --few; got {many}")
    report = Report("batch")
    with TemporaryDirectory(prefix="overfeat-benchmark-") as name:
        folder = Path(name)
        model = export_detector(preset, folder)
        files = write_photographs(folder / "photographs", many)
        samples = collect(_ratios(model, files, folder, few, repetitions), repetitions)
    what = f"`{preset}`, photographs of 500x375"
    report.add("per_core_of_predict", samples["per_core_of_predict"], f"{what}: images a CPU second", (">=", 0.95))
    remark = f"{what}: two processes of one thread, images a second over one's"
    report.add("two_processes", samples["two_processes"], remark, (">=", 1.9))
    remark = f"{what}: the same, images a CPU second, which other programs on the machine change less"
    report.add("two_processes_per_core", samples["two_processes_per_core"], remark, (">=", 0.95))
    if networks:
        report.tables.append(cost_table(networks))
    return report


def _ratios(model: Path, files: Sequence[Path], folder: Path, few: int, repetitions: int) -> Iterator[dict[str, float]]:
    def batch(some: Sequence[Path], *options: str) -> Cost:
        out = Path(mkdtemp(dir=folder))
        (out / "images.txt").write_text("".join(f"{file}\n" for file in some))
        return _cost("batch", model, out / "images.txt", "--output", out / "shards", *options)

    def predict(some: Sequence[Path]) -> Cost:
        return _cost("predict", model, *some, "--out", folder / "pictures")

    def without_start(program: Callable[..., Cost], *options: str) -> Cost:
        longer, shorter = program(files, *options), program(files[:few], *options)
        return Cost(longer.seconds - shorter.seconds, longer.cpu_seconds - shorter.cpu_seconds)

    for _ in range(repetitions):
        one = without_start(batch, "--threads", "1")
        two = without_start(batch, "--processes", "2", "--threads", "1")
        yield {
            "per_core_of_predict": without_start(predict).cpu_seconds / without_start(batch).cpu_seconds,
            "two_processes": one.seconds / two.seconds,
            "two_processes_per_core": one.cpu_seconds / two.cpu_seconds,
        }


def _cost(*arguments: object) -> Cost:
    """Run the command, and return what it took with the processes that it started."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "overfeat_tf.cli", *map(str, arguments)], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"expected `overfeat {arguments[0]}` to end well; it ended with {process.returncode}")
    return Cost(time.perf_counter() - began, usage.ru_utime + usage.ru_stime)


def cost_table(networks: Sequence[str]) -> str:
    """Measure the CPU time of detection for each network, with random weights and its own scales, as exported."""
    image = encode_photograph()
    rows = []
    for name in networks:
        model = random_detector(name)
        model = model.with_options(arithmetic=choose_arithmetic([model.network]).arithmetic)
        model.detect([image])
        began = time.process_time()
        for _ in range(SCANNED):
            model.detect([image])
        seconds = (time.process_time() - began) / SCANNED
        facts = (f"`{Path(name).name}`", len(model.network.preset.scales), model.options.arithmetic)
        rows.append((*facts, f"{seconds:.3f}", f"{seconds * 1e6 / 3600:,.0f}"))
        log.info("%s: %.3f CPU s an image", name, seconds)
    return markdown_table(("network", "scales", "arithmetic", "CPU s an image", "CPU hours a million"), rows)
