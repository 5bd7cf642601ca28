"""MODEL_CARD.md: a version's network, data, metrics, memory and limits."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

from overfeat_tf.compute.choice import processor
from overfeat_tf.images.decode import MAX_PIXELS
from overfeat_tf.models.loading import read_config
from overfeat_tf.models.model import Model
from overfeat_tf.network.presets import Preset
from serving.export.footprint import SIZE, Comparison
from serving.export.signatures import signature_names
from serving.export.warmup import ALLOWED_BATCH_SIZES

SHOWN_CLASSES = 20
OWN = " val_"  # is in the names of a run's own figures, and in no evaluation's


def model_card(
    model: Model,
    name: str,
    version: int,
    folder: Path,
    training: Mapping,
    made: Mapping[str, str],
    metrics: Mapping | None = None,
    comparison: Comparison | None = None,
) -> str:
    """Write the card of a version.

    Args:
        model: What was exported.
        name: The served model's name.
        version: Its number.
        folder: Its files, all but the card.
        training: The run's configuration.
        made: The export's `date` and `tensorflow`, whose version it was.
        metrics: Figures by name.
        comparison: What it takes to run.
    """
    sections = {
        "What it is": _identity(model, training, made),
        "How good it is": _metrics(metrics, training),
        "What it takes": _needs(model, folder, comparison),
        "Limits": _limits(model),
    }
    body = "\n".join(f"## {title}\n\n{text}\n" for title, text in sections.items())
    return (
        f"# {name}, version {version}\n\n"
        "An OverFeat network (Sermanet et al., arXiv 1312.6229), exported by overfeat_tf.\n\n"
        f"{body}\nAll settings are in `config.json`, the class names in `assets/labels.txt`.\n"
    )


def _identity(model: Model, training: Mapping, made: Mapping[str, str]) -> str:
    preset, options = model.network.preset, model.options
    shown = ", ".join(model.labels[:SHOWN_CLASSES]) + (" ..." if len(model.labels) > SHOWN_CLASSES else "")
    scales = ", ".join(f"{h}x{w}" for h, w in options.scale_sizes(preset))
    grid = f"{'fine' if options.fine else 'coarse'} stride, {'with' if options.flips else 'without'} flips"
    members = f", a committee of {len(model.networks)}" if model.others else ""
    lines = [
        f"- Network: `{preset.name}`, window {preset.window} pixels{members}",
        f"- Trained for: {', '.join(model.tasks)}",
        f"- Data: {training.get('data') or 'unknown'}; recipe `{training.get('name') or 'unknown'}`",
        *([f"- Validation: {training['split']}; `split.json` names them"] if training.get("split") else []),
        f"- Classes ({len(model.labels)}): {shown}",
        f"- Scales: {scales} pixels (about; each image's own aspect), {grid}",
        *([f"- Weights: {training['weights']}"] if training.get("weights") else []),
        f"- Exported: {made['date']} by TensorFlow {made['tensorflow']}; servers of that version or later load it",
        f"- Signatures: {', '.join(f'`{key}`' for key in signature_names(model))}",
    ]
    if "detection" in model.tasks:
        lines += _scores(model)
    return "\n".join(lines)


def _scores(model: Model) -> list[str]:
    """Say what the scores of `detect` mean, and from which on a box is worth showing."""
    known, threshold = model.calibration, f"- Display threshold: {model.display_threshold:.3f}"
    if known is None or model.options.scores == "accumulated":
        why = "; the model is not calibrated" if known is None else ", the score of the best F1 on validation images"
        return [
            "- Scores of `detect` are the accumulated score s of the windows behind a box, as s / (1 + s): 0.5 is the\n"
            "  evidence of one fully certain window",
            threshold + why,
        ]
    lines = [
        "- Scores of `detect` are probabilities: of the boxes that score 0.7 seven in ten are right (an IoU of 0.5\n"
        "  with an object of their class that no better box has found), as fitted on"
        f" {known.images} validation images\n  and {known.detections} boxes",
        f"{threshold}, the score of the best F1 there; a program that draws boxes should leave out those below",
    ]
    if others := known.changed_options(model.options):
        lines.append(f"- The scores were calibrated with other {', '.join(others)}: use only their ranking")
    return lines


def _metrics(metrics: Mapping | None, training: Mapping) -> str:
    if not metrics:
        return "Not measured at export: `overfeat evaluate` with `--json FILE`, then `overfeat export --metrics FILE`."
    rows = [f"| {name} | {value:.4f} |" if isinstance(value, float) else f"| {name} | {value} |"
            for name, value in metrics.items()
            if isinstance(value, str | int | float) and not name.startswith("reliability/")]  # fmt: skip
    table = "\n".join(["| figure | |", "| --- | --- |", *rows])
    if not any(OWN in name for name in metrics):
        return table
    images = training.get("validation_images", "some")
    return (
        f"The run's own, of its validation split while it was trained, {images} images at most for localization and\n"
        "detection. `overfeat evaluate --json FILE`, then `overfeat export --metrics FILE`, tells more.\n\n"
        f"{table}"
    )


def _needs(model: Model, folder: Path, comparison: Comparison | None) -> str:
    reduced = model.options.arithmetic == "bfloat16"
    parameters = sum(part.count_params() for member in model.networks for part in model.parts_of(member).values())
    files = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    lines = [
        f"- Parameters: {parameters:,}{', stored in bfloat16' if reduced else ''}",
        f"- Files: {files / 1e6:.1f} MB",
    ]
    if reduced:
        lines.append(
            "- Made for processors that multiply bfloat16 faster than float32; others answer the same, but slowly:\n"
            "  export with `--arithmetic winograd` for them, and with `direct` for programs that train `.features`"
        )
    if "extract_features" in signature_names(model):
        megabytes = f"{_native_bytes(model.network.preset):.0f} MB"
        lines.append(
            f"- `extract_features` shows images at their own size: up to about {megabytes} more for\n"
            "  each megapixel of a request, beside the memory below"
        )
    if comparison is None:
        return "\n".join([*lines, "- Memory: not measured at export"])
    own = model.options.arithmetic
    bare = comparison.footprints[own].tensorflow_bytes / 1e6
    lines += [
        f"- Memory and time on the exporting machine's CPU ({processor()}), for one image of {SIZE[0]}x{SIZE[1]}\n"
        f"  to the default signature, in a process that took {bare:.0f} MB for TensorFlow alone:",
        "",
        "| arithmetic | loaded MB | peak MB | load s | first request s | second ms | error |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, taken in comparison.footprints.items():
        error = f"{comparison.errors[name]:.0e}" if name in comparison.errors else ""
        name = f"**{name}**, this version" if name == own else name
        sizes = f"{taken.loaded_bytes / 1e6:.0f} | {taken.peak_bytes / 1e6:.0f}"
        times = f"{taken.load_seconds:.1f} | {taken.first_seconds:.1f} | {taken.next_seconds * 1e3:.0f}"
        lines.append(f"| {name} | {sizes} | {times} | {error} |")
    if not comparison.errors:
        return "\n".join([*lines, "", "No other arithmetic is faster for this network on that machine."])
    error = "The error is the largest difference from the direct class scores before softmax, over the largest of"
    return "\n".join([*lines, "", f"{error}\nthese, on an image of noise."])


def _native_bytes(preset: Preset) -> float:
    """Estimate what a pixel takes while features are computed: the pixels, and three maps of the largest layer.

    Measured for the second to the sixth megapixel: 280 bytes of `tiny`'s 303, 140 of `accurate`'s.
    """
    side = 10_000
    largest = 4 * preset.backbone.largest_map(side, side) / side**2
    return 3 * largest + 3 * (1 + 4)  # as bytes, then as floats


def _limits(model: Model) -> str:
    lines = [
        f"- Images of more than {MAX_PIXELS / 1e6:.0f} megapixels, and files that are no images, get a `status` and"
        " no answer;\n  other images of the batch are not affected",
        "- Objects of other classes are missed or get the nearest class",
        f"- `batching_params.pbtxt` admits requests of up to {ALLOWED_BATCH_SIZES[-1]} images with batching on; without"
        " it, of any number",
    ]
    if not {"localization", "detection"} & set(model.tasks):
        lines.append("- It was trained to classify: it has no boxes")
    return "\n".join(lines)


def read_metrics(file: Path) -> dict:
    """Read what `overfeat evaluate --json` wrote.

    Raises:
        ValueError: it holds something else.
    """
    try:
        figures = json.loads(file.read_text())
    except OSError as error:
        raise ValueError(f"expected figures in '{file}'; it cannot be read: {error.strerror}") from None
    except ValueError:
        figures = None
    if not isinstance(figures, dict) or not any(isinstance(value, int | float) for value in figures.values()):
        raise ValueError(
            f"expected figures by name in '{file}', as `overfeat evaluate --json` writes; got other things"
        )
    return figures


def run_figures(run: Path, last: bool = False) -> dict[str, float]:
    """Read a run's own validation figures from its results.csv, as `STAGE val_NAME`; none where there are none.

    They are of the weights that the run has, the best of each stage, or those of the last step of its last stage; of
    some images of the validation split, and so they say less than an evaluation does.
    """
    table = run / "results.csv"
    if not table.is_file():
        return {}
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    kept = read_config(run).get("kept") or {}
    figures: dict[str, float] = {}
    for stage, weights in kept.items():
        at_end = "best" not in weights or (last and stage == list(kept)[-1])
        step = weights["step"] if at_end else weights["best"]["step"]
        for row in rows:
            if (row["stage"], int(row["step"])) == (stage, step):
                found = {f"{stage} {name}": value for name, value in row.items() if name.startswith("val_") and value}
                figures |= {name: float(value) for name, value in found.items()}
    return figures


def run_weights(config: Mapping, last: bool = False) -> str | None:
    """Say which of a run's weights are exported: those of its best validation or of its last step; None if unknown."""
    if not config.get("kept"):
        return None
    stage, kept = list(config["kept"].items())[-1]
    average = f"; moving averages with decay {kept['ema']:g}" if kept.get("ema") else ""
    if "best" not in kept:
        return f"of {stage} after its last step, {kept['step']}; it was not validated{average}"
    one, other = ("last", "best") if last else ("best", "last")
    figure, alternative = (
        f"{kept['metric']} {kept[kind]['value']:.4g} in epoch {kept[kind]['epoch']}" for kind in (one, other)
    )
    return f"the {one} of {stage}, {figure} (the {other}: {alternative}){average}"
