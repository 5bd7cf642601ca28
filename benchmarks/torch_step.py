"""The same network, loss and optimiser in PyTorch: what the training step is measured against."""

from collections.abc import Callable

import numpy as np

from overfeat_tf.presets import Preset


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
    channels = 3
    for row in preset.convs:
        rows += [nn.Conv2d(channels, row.channels, row.kernel, row.stride, row.padding), nn.ReLU()]
        rows += [nn.MaxPool2d(row.pool)] if row.pool > 1 else []
        channels = row.channels
    rows += [nn.Flatten()]
    inputs = channels * preset.head_kernel**2
    for outputs in preset.full:
        rows += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(preset.dropout)]
        inputs = outputs
    network = nn.Sequential(*rows, nn.Linear(inputs, classes)).to(memory_format=torch.channels_last)
    kernels = [p for p in network.parameters() if p.ndim > 1]
    biases = [p for p in network.parameters() if p.ndim == 1]
    with torch.no_grad():
        for kernel in kernels:
            kernel.normal_(0.0, preset.init_std or 0.01)
        for bias in biases:
            bias.zero_()
    groups = [{"params": kernels, "weight_decay": decay}, {"params": biases}]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=momentum)
    loss_of = nn.CrossEntropyLoss()
    # As ours: bytes, channels last, normalised within the step.
    images, truth = torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels).long()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(network((images.float() - preset.mean) / preset.std), truth)
        loss.backward()
        optimizer.step()
        return float(loss)

    return step
