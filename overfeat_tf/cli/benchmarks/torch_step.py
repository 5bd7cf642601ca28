"""The same network, loss and optimiser in PyTorch: what the training step is measured against.

As a program, in a process of its own, since the libraries of PyTorch and TensorFlow do not bear each other:
`torch_step PRESET CLASSES BATCH RATE MOMENTUM DECAY` reads numbers of steps and tells the seconds they took.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np

from overfeat_tf.network.backbone import CONTRAST, GREY
from overfeat_tf.network.presets import Preset, get_preset


@contextmanager
def timed_steps(
    preset: Preset, classes: int, batch: int, rate: float, momentum: float, decay: float
) -> Iterator[Callable[[int], float]]:
    """Start the program, and give a call that takes so many steps and returns their seconds.

    Raises:
        ImportError: PyTorch is not there.
        RuntimeError: the program ended.
    """
    if find_spec("torch") is None:
        raise ImportError("expected PyTorch to compare with; there is none: pip install 'overfeat-tf[benchmark]'")
    settings = (preset.name, classes, batch, rate, momentum, decay)
    command = [sys.executable, "-m", "overfeat_tf.cli.benchmarks.torch_step", *map(str, settings)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as program:
        asked, answered = program.stdin, program.stdout
        assert asked is not None and answered is not None

        def take(steps: int) -> float:
            asked.write(f"{steps}\n")
            line = answered.readline()
            if not line:
                raise RuntimeError("expected PyTorch's seconds; its process ended: see its lines above")
            return float(line)

        try:
            yield take
        finally:
            program.terminate()


def torch_step(
    preset: Preset, classes: int, rate: float, momentum: float, decay: float, pixels: np.ndarray, labels: np.ndarray
) -> Callable[[], float]:
    """Make a call that takes one training step on a batch and returns its loss.

    Args:
        preset: The tables.
        classes: Outputs of the last layer.
        rate, momentum, decay: Of SGD; its decay is L2, of kernels alone, as ours.
        pixels: uint8 [B, window, window, 3].
        labels: int32 [B].

    Raises:
        ImportError: PyTorch is not there.
    """
    import torch
    from torch import nn

    rows: list[nn.Module] = []
    for row in preset.backbone.layers:
        rows += [nn.Conv2d(row.inputs, row.channels, row.kernel, row.stride, row.padding), nn.ReLU()]
        rows += [nn.MaxPool2d(row.pool)] if row.pool > 1 else []
    rows += [nn.Flatten()]
    *hidden, last = preset.head("classifier", classes)
    for row in hidden:
        rows += [nn.Linear(row.inputs * row.kernel**2, row.channels), nn.ReLU(), nn.Dropout(preset.dropout)]
    network = nn.Sequential(*rows, nn.Linear(last.inputs, classes))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    kernels = [p for p in network.parameters() if p.ndim > 1]
    biases = [p for p in network.parameters() if p.ndim == 1]
    with torch.no_grad():
        for kernel in kernels:
            kernel.normal_(0.0, preset.init_std or 0.01)
        for bias in biases:
            bias.zero_()
    groups: list[dict[str, Any]] = [{"params": kernels, "weight_decay": decay}, {"params": biases}]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=momentum)
    loss_of = nn.CrossEntropyLoss()
    # As ours: bytes, channels last, normalised within the step.
    images, truth = torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels).long()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(network((images.float() - GREY) / CONTRAST), truth)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def _serve(name: str, classes: str, batch: str, rate: str, momentum: str, decay: str) -> None:
    preset, rng = get_preset(name), np.random.default_rng(0)
    pixels = rng.integers(0, 256, (int(batch), preset.window, preset.window, 3), np.uint8)
    labels = rng.integers(0, int(classes), int(batch), np.int32)
    step = torch_step(preset, int(classes), float(rate), float(momentum), float(decay), pixels, labels)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            step()
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
