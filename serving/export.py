"""Write a SavedModel version: beside, verified against the live model, then renamed into place."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tensorflow as tf

from overfeat_tf.loading import Exported
from overfeat_tf.model import CONFIG, Model
from serving.signatures import Servable, signature_names
from serving.warmup import write_warmup

TOLERANCE = 1e-4  # between the live model's answers and the reloaded one's, on values of about 1
LABELS = "labels.txt"

BATCHING = """\
# tensorflow_model_server --enable_batching --batching_parameters_file=...: images of one request are run one after
# the other, so a batch gains nothing on CPU beyond fewer calls; keep it small so that answers come soon.
max_batch_size { value: 8 }
batch_timeout_micros { value: 2000 }
max_enqueued_batches { value: 64 }
num_batch_threads { value: 2 }
"""


def export(model: Model, to: Path, version: int | None = None, training: dict | None = None) -> Path:
    """Export a model as `to`/`version`.

    Nothing that a server would pick up is there before the reloaded model has answered as the live one.

    Args:
        model: What to export.
        to: The model's folder; its name is the served model's.
        version: The version; the next free one if None.
        training: The run's configuration, for config.json and the card.

    Returns:
        The version's folder.

    Raises:
        ValueError: the version exists, or is not a positive number.
        RuntimeError: the reloaded model answers otherwise.
    """
    taken = [int(path.name) for path in to.glob("*") if path.name.isdigit()]
    number = version if version is not None else max(taken, default=0) + 1
    if number < 1 or number in taken:
        raise ValueError(f"expected a new version of at least 1; got {number}, there are {sorted(taken)} in '{to}'")
    to.mkdir(parents=True, exist_ok=True)
    beside = to / f".{number}.partial"  # no number: no server looks at it
    shutil.rmtree(beside, ignore_errors=True)
    servable = Servable(model)
    tf.saved_model.save(servable, str(beside), signatures=servable.signatures_to_save())
    (beside / "assets").mkdir(exist_ok=True)
    (beside / "assets" / LABELS).write_text("".join(f"{label}\n" for label in model.labels))
    (beside / CONFIG).write_text(json.dumps({"model": model.config(), "training": training or {}}, indent=2) + "\n")
    (beside / "batching_params.pbtxt").write_text(BATCHING)
    (beside / "MODEL_CARD.md").write_text(_card(model, to.name, number, training or {}))
    write_warmup(beside, to.name, signature_names(model))
    verify(model, beside)
    beside.rename(to / str(number))
    return to / str(number)


def verify(model: Model, folder: Path) -> None:
    """Compare the reloaded model's answers with the live one's, on noise and on a bad image.

    Raises:
        RuntimeError: they differ; the message says where and by how much.
    """
    pixels = np.random.default_rng(1).integers(0, 256, (1, 97, 131, 3), dtype=np.uint8)
    encoded = [tf.io.encode_png(pixels[0]).numpy(), b"no image"]
    reloaded = Exported(folder)
    calls: Iterable[tuple[str, list[bytes] | np.ndarray]] = [
        (name, images)
        for task, name in (("classification", "classify"), ("localization", "localize"), ("detection", "detect"))
        if task in model.tasks
        for images in (encoded, pixels)
    ]
    for name, images in calls:
        live, other = getattr(model, name)(images), getattr(reloaded, name)(images)
        for key, value in other.items():
            same = value.shape == live[key].shape and (
                np.allclose(value, live[key], rtol=TOLERANCE, atol=TOLERANCE)
                if value.dtype.kind == "f"
                else np.array_equal(value, live[key])
            )
            if not same:
                raise RuntimeError(f"the exported model's {name} differs from the live one's in '{key}': not exported")


def _card(model: Model, name: str, version: int, training: dict) -> str:
    preset = model.network.preset
    parameters = sum(part.count_params() for member in model.networks for part in model.parts_of(member).values())
    shown = ", ".join(model.labels[:20]) + (" ..." if len(model.labels) > 20 else "")
    scales = ", ".join(f"{h}x{w}" for h, w in model.options.scale_sizes(preset))
    return f"""# {name}, version {version}

An OverFeat network (Sermanet et al., arXiv 1312.6229), exported by overfeat_tf.

- Network: `{preset.name}`, window {preset.window} pixels, {parameters:,} parameters ({parameters * 4 / 1e6:.1f} MB)
- Trained for: {", ".join(model.tasks)}
- Data: {training.get("data", "unknown")}; recipe `{training.get("name", "unknown")}`
- Classes ({len(model.labels)}): {shown}
- Scales: {scales} pixels (about; each image's own aspect), {"fine" if model.options.fine else "coarse"} stride, \
{"with" if model.options.flips else "without"} flips

Signatures: {", ".join(f"`{key}`" for key in signature_names(model))}. Scores of `detect` are the
accumulated score s of the windows behind a box, as s / (1 + s): 0.5 is the evidence of one fully certain window.

Images of more than 50 megapixels, and files that are no images, get a `status` and no boxes. All settings are in
`config.json`, the class names in `assets/{LABELS}`.
"""
