"""The same network, loss and optimizer in PyTorch, for comparison with the training step.

It runs as a program in a separate process, because the libraries of PyTorch and TensorFlow conflict in one process:
`torch_step PRESET CLASSES BATCH RATE MOMENTUM DECAY AUTOCAST` reads a number of steps per line and prints their
seconds.
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
    preset: Preset, classes: int, batch: int, rate: float, momentum: float, decay: float, autocast: bool
) -> Iterator[Callable[[int], float]]:
    """Start the program; yield a function that runs a number of steps and returns their seconds.

    The arguments are those of `torch_step`.

    Raises:
        ImportError: PyTorch is not installed.
        RuntimeError: the program has exited.
    """
    if find_spec("torch") is None:
        raise ImportError("expected PyTorch to compare with; it is not installed: pip install torch")
    settings = (preset.name, classes, batch, rate, momentum, decay, int(autocast))
    command = [sys.executable, "-m", "overfeat_tf.cli.benchmarks.training.torch_step", *map(str, settings)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as program:
        requests, replies = program.stdin, program.stdout
        assert requests is not None and replies is not None

        def run(steps: int) -> float:
            requests.write(f"{steps}\n")
            line = replies.readline()
            if not line:
                raise RuntimeError("expected PyTorch's times; its process exited: see its output above")
            return float(line)

        try:
            yield run
        finally:
            program.terminate()


def torch_step(
    preset: Preset,
    classes: int,
    rate: float,
    momentum: float,
    decay: float,
    pixels: np.ndarray,
    labels: np.ndarray,
    autocast: bool = False,
) -> Callable[[], float]:
    """Return a function that runs one training step on a batch and returns its loss.

    Args:
        preset: The network.
        classes: Outputs of the last layer.
        rate, momentum, decay: Of SGD. The decay is L2 on kernels only, like ours.
        pixels: uint8 [B, window, window, 3].
        labels: int32 [B].
        autocast: Whether the network and its loss compute in bfloat16 where PyTorch's autocast does.

    Raises:
        ImportError: PyTorch is not installed.
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
    loss_function = nn.CrossEntropyLoss()
    # Like ours: bytes, channels last, normalised within the step.
    images, truth = torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels).long()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_function(network((images.float() - GREY) / CONTRAST), truth)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def _main(name: str, classes: str, batch: str, rate: str, momentum: str, decay: str, autocast: str) -> None:
    preset, rng = get_preset(name), np.random.default_rng(0)
    pixels = rng.integers(0, 256, (int(batch), preset.window, preset.window, 3), np.uint8)
    labels = rng.integers(0, int(classes), int(batch), np.int32)
    hyper = (float(rate), float(momentum), float(decay))
    step = torch_step(preset, int(classes), *hyper, pixels, labels, bool(int(autocast)))
    for line in sys.stdin:
        started = time.perf_counter()
        for _ in range(int(line)):
            step()
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
