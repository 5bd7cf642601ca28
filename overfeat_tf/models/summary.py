"""What a model is, in a few lines of text."""

from collections.abc import Mapping
from dataclasses import fields

from overfeat_tf.merge.calibration import display_threshold
from overfeat_tf.models.tasks import BY_NAME
from overfeat_tf.network.presets import Preset
from overfeat_tf.options import InferenceOptions

NAMES = 8  # of classes


def summarize(config: Mapping) -> str:
    """Return a model's description as text, from what `Model.config` gives."""
    preset, count = Preset.from_config(config["preset"]), config["num_classes"]
    labels, options = config["labels"], config["options"]
    heads = config.get("per_class", False), config.get("context", False)
    parts = preset.parameters(count, config["background"], *heads)
    if not any(BY_NAME[task].has_boxes for task in config["tasks"]):
        del parts["regressor"]
    changed = [
        f"{field.name}={_text(options[field.name])}"
        for field in fields(InferenceOptions)
        if field.name in options and options[field.name] != field.default
    ]
    rows = {
        "network": preset.name + f", a committee of {1 + len(config['others'])}" * bool(config.get("others")),
        "tasks": ", ".join(config["tasks"]) or "none",
        "classes": f"{count}: {', '.join(labels[:NAMES])}{', ...' * (len(labels) > NAMES)}",
        "window": f"{preset.window} x {preset.window} pixels, every {preset.fine_stride} (fine) or "
        f"{preset.coarse_stride} (coarse)",
        "scales": ", ".join(f"{height}x{width}" for height, width in preset.scales),
        "options": ", ".join(changed) or "the defaults",
        "scores": f"{'' if config.get('calibration') else 'not '}calibrated; worth showing from "
        f"{display_threshold(config):.2f}",
        "parameters": f"{sum(parts.values()):,}: " + ", ".join(f"{part} {number:,}" for part, number in parts.items()),
    }
    return "\n".join(f"{key:12}{value}" for key, value in rows.items())


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
