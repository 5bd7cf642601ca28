"""The machine that a benchmark runs on: its description, its matrix-product rate, times and peak memory."""

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import keras
import tensorflow as tf

from overfeat_tf.compute.choice import bfloat16_gain, processor

SIDE = 4096  # of the square matrices whose product is timed: large enough to run at the full rate


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


def time_call(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes. Its result must be on the host when it returns."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def computing_seconds() -> float:
    """Return the seconds that the processor's cores have worked for this process; wall-clock time with a GPU."""
    return time.perf_counter() if tf.config.list_physical_devices("GPU") else time.process_time()


class MatrixProduct:
    """A large matrix product: the rate that other arithmetic is compared with.

    Args:
        dtype: Of the matrices.
        side: Of the square matrices.
    """

    def __init__(self, dtype: str = "float32", side: int = SIDE) -> None:
        self._side = side
        one, other = tf.unstack(tf.cast(tf.random.stateless_normal([2, side, side], [1, 2]), dtype))
        self._run = tf.function(lambda: tf.reduce_max(tf.matmul(one, other)), autograph=False)
        self._run().numpy()

    def rate(self) -> float:
        """Time the product once; return multiply-adds per second."""
        return self._side**3 / time_call(lambda: self._run().numpy())


def run_module(module: str, *arguments: object) -> list[float]:
    """Run a module as a program in a fresh process; return the numbers that it prints."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [float(number) for number in output.split()]


def peak_memory_gb() -> float:
    """Return the peak resident memory of this process; nan where the system does not report it."""
    # Not getrusage: its peak starts at that of the process that this one was forked from.
    status = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text() if status.is_file() else "")
    return int(peak[1]) * 1024 / 1e9 if peak else float("nan")
