"""The same network, loss and optimizer in PyTorch, for comparison with the training step.

It runs as a program in a separate process, because the libraries of PyTorch and TensorFlow conflict in one process:
`torch_step PRESET CLASSES BATCH LEARNING_RATE MOMENTUM DECAY AUTOCAST` reads a number of steps per line and prints
their seconds.
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
    preset: Preset, classes: int, batch: int, learning_rate: float, momentum: float, decay: float, autocast: bool
) -> Iterator[Callable[[int], float]]:
    """Start the program; yield a function that runs a number of steps and returns their seconds.

    Args:
        preset: The network.
        classes: Outputs of the last layer.
        batch: Images in the batch.
        learning_rate, momentum, decay: Of SGD. The decay is L2 on kernels only, like ours.
        autocast: Whether the network and its loss compute in bfloat16 where PyTorch's autocast does.

    Raises:
        ImportError: PyTorch is not installed.
        RuntimeError: the program has exited.
    """
    if find_spec("torch") is None:
        raise ImportError("expected PyTorch to compare with; it is not installed: pip install torch")
    settings = (preset.name, classes, batch, learning_rate, momentum, decay, int(autocast))
    command = [sys.executable, "-m", "overfeat_tf.cli.benchmarks.torch_step", *map(str, settings)]
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


def _main(name: str, classes: int, batch: int, learning_rate: float, momentum: float, decay: float, autocast: bool):
    """Build the network and a batch of noise; answer the requests of `timed_steps`."""
    import torch
    from torch import nn

    preset, rng = get_preset(name), np.random.default_rng(0)
    layers: list[nn.Module] = []
    for row in preset.backbone.layers:
        layers += [nn.Conv2d(row.inputs, row.channels, row.kernel, row.stride, row.padding), nn.ReLU()]
        layers += [nn.MaxPool2d(row.pool)] if row.pool > 1 else []
    layers += [nn.Flatten()]
    *hidden, last = preset.head("classifier", classes)
    for row in hidden:
        layers += [nn.Linear(row.inputs * row.kernel**2, row.channels), nn.ReLU(), nn.Dropout(preset.dropout)]
    network = nn.Sequential(*layers, nn.Linear(last.inputs, classes))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    kernels = [p for p in network.parameters() if p.ndim > 1]
    biases = [p for p in network.parameters() if p.ndim == 1]
    with torch.no_grad():
        for kernel in kernels:
            kernel.normal_(0.0, preset.init_std or 0.01)
        for bias in biases:
            bias.zero_()
    groups: list[dict[str, Any]] = [{"params": kernels, "weight_decay": decay}, {"params": biases}]
    optimizer = torch.optim.SGD(groups, lr=learning_rate, momentum=momentum)
    loss_function = nn.CrossEntropyLoss()
    # Like ours: bytes, channels last, normalised within the step.
    pixels = rng.integers(0, 256, (batch, preset.window, preset.window, 3), np.uint8)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    labels = torch.from_numpy(rng.integers(0, classes, batch))
    for line in sys.stdin:
        started = time.perf_counter()
        for _ in range(int(line)):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = loss_function(network((images.float() - GREY) / CONTRAST), labels)
            loss.backward()
            optimizer.step()
            loss.item()
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    name, classes, batch, *hyper, autocast = sys.argv[1:]
    learning_rate, momentum, decay = map(float, hyper)
    _main(name, int(classes), int(batch), learning_rate, momentum, decay, autocast == "1")
