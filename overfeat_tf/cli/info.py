"""`overfeat info`: print a network like the paper's tables."""

from overfeat_tf.network.convnet import Network, build
from overfeat_tf.network.presets import PRESETS
from overfeat_tf.scan.features import layer_names

CLASSES = 1000  # as in Table 4


def table(name: str) -> str:
    """Return the layers, sizes, parameters, connections, strides and scales of a network as text, for 1000 classes."""
    network = build(name, CLASSES, weights=None if name not in PRESETS else False)
    preset = network.preset
    layers, head = preset.backbone.layers, preset.head("classifier", CLASSES)
    width = max(12, *(len(layer.name) + 1 for layer in (*layers, *head)))
    lines = [f"{name}: window {preset.window}x{preset.window}, {CLASSES} classes", ""]
    lines.append(
        f"{'layer':{width}}{'kernel':>8}{'stride':>8}{'pad':>5}{'channels':>10}{'pool':>6}{'map':>12}{'parameters':>14}"
    )
    sides = [*preset.backbone.sides(preset.window), *[1] * len(head)]
    for layer, side in zip((*layers, *head), sides, strict=True):
        size = f"{side} -> {side // layer.pool}" if layer.pool > 1 else f"{side}"
        pool = f"{layer.pool}x{layer.pool}" if layer.pool > 1 else "-"
        kernel = f"{layer.kernel}x{layer.kernel}"
        lines.append(
            f"{layer.name:{width}}{kernel:>8}{layer.stride:>8}{layer.padding:>5}{layer.channels:>10}{pool:>6}{size:>12}"
            f"{layer.parameters:>14,}"
        )
    shown = {layer.name for layer in (*layers, *head)}
    boxes = [layer.name for layer in network.blank_regressor().layers]
    also = [name for name in layer_names(network) if name not in shown]
    count = network.features.count_params() + network.classifier.count_params()
    lines += [
        "",
        f"also         {' '.join(name for name in also if name not in boxes)}",
        f"with boxes   {' '.join(name for name in also if name in boxes)}",
        "",
        f"parameters   {count / 1e6:.2f} M (regressor: {network.blank_regressor().count_params() / 1e6:.2f} M more)",
        f"connections  {connections(network) / 1e6:.1f} M multiply-adds at the window size",
        f"stride       {preset.coarse_stride} pixels coarse, {preset.fine_stride} fine",
        "",
        f"{'scale':8}{'input':>12}{'unpooled':>12}{'pooled':>12}{'windows':>12}{'interleaved':>14}",
    ]
    for number, (height, width) in enumerate(preset.scales, start=1):
        unpooled = [preset.feature_side(side) for side in (height, width)]
        # The same at every offset: the scales' sides divide evenly.
        each = [side // preset.last_pool for side in unpooled]
        coarse = [preset.window_count(side, fine=False) for side in (height, width)]
        fine = [preset.window_count(side) for side in (height, width)]
        maps = "{}x{}".format
        lines.append(
            f"{number:<8}{maps(height, width):>12}{maps(*unpooled):>12}{maps(*each):>12}"
            f"{maps(*coarse):>12}{maps(*fine):>14}"
        )
    return "\n".join(lines)


def connections(network: Network) -> int:
    """Return the multiply-adds of features and classifier for one window (Table 4)."""
    preset = network.preset
    head = preset.head("classifier", network.num_classes + network.background)
    return preset.backbone.multiply_adds(preset.window, preset.window) + sum(layer.multiply_adds for layer in head)
