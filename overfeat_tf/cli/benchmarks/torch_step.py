"""The same network, loss and optimizer in PyTorch, for comparison with the training step.

It is a program for a process of its own, because the libraries of PyTorch and TensorFlow conflict in one process:
`torch_step PRESET CLASSES BATCH LEARNING_RATE MOMENTUM DECAY AUTOCAST` reads a number of steps per line and prints
their seconds. The decay is L2 on kernels only, like ours.
"""

import sys
import time
from typing import Any

import numpy as np

from overfeat_tf.network.backbone import CONTRAST, GREY
from overfeat_tf.network.presets import get_preset


def _main(
    name: str, classes: int, batch: int, learning_rate: float, momentum: float, decay: float, autocast: bool
) -> None:
    """Train on a batch of noise for as many steps as each line of the input says; print their seconds."""
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
