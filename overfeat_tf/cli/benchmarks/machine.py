"""The machine that a benchmark runs on: what it is, and the limit of its arithmetic."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import keras
import tensorflow as tf

SIDE = 4096  # of the square matrices whose product is the limit: large enough to run at full rate


def describe() -> dict[str, str | int]:
    """Describe the machine and the libraries, in JSON's types."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
        "gpus": len(tf.config.list_physical_devices("GPU")),
        "system": platform.platform(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }


def seconds(call: Callable[[], object]) -> float:
    """Time one call, whose result must be on the host when it returns."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class MatrixProduct:
    """A large float32 matrix product: the rate that all other arithmetic is measured against."""

    def __init__(self) -> None:
        one, other = tf.random.stateless_normal([2, SIDE, SIDE], [1, 2])
        self._run = tf.function(lambda: tf.reduce_max(tf.matmul(one, other)), autograph=False)
        self._run().numpy()

    def rate(self) -> float:
        """Time the product once; multiply-adds a second."""
        return SIDE**3 / seconds(lambda: self._run().numpy())
