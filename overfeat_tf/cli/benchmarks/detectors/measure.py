"""`overfeat benchmark detectors`: the recipe `finetune` against KerasHub's RetinaNet on the same backbone.

Both train on the same split for the same time, one after the other, and are scored by the same code.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import tensorflow as tf

from overfeat_tf.cli.benchmarks.detectors.retinanet import require_keras_hub, train_retinanet
from overfeat_tf.cli.benchmarks.machine import computing_seconds, describe_machine, time_call
from overfeat_tf.cli.benchmarks.report import Report, markdown_table
from overfeat_tf.cli.options import with_changes
from overfeat_tf.images.decode import decode_image
from overfeat_tf.models.model import TASKS
from overfeat_tf.models.predictor import Predictor
from training.evaluation.evaluate import evaluate
from training.fit.train import train
from training.recipes import Recipe, get_recipe, override
from training.sources import open_source
from training.sources.record import Source

FINETUNE = "finetune"
FIGURES = ("map50", "map", "map75")
PILOTS = (0.02, 0.06)  # shares of the recipe's steps that are trained to learn what all of them take
SIZE, CALLS = (375, 500), 10  # height and width of the image that is timed, and how often

log = logging.getLogger(__name__)


class Trained(NamedTuple):
    """A detector, the seconds of its training, and its figures on the validation split."""

    model: Predictor
    seconds: float
    figures: dict[str, float]


def measure(backbone: str, data: Sequence[str], minutes: float | None, repetitions: int) -> Report:
    """Compare the two detectors on each set.

    Args:
        backbone: A model with pretrained weights, as `pretrained.open_model` takes it.
        data: SOURCES with boxes.
        minutes: Of `computing_seconds`, what each training takes: the recipe about, RetinaNet as long as the recipe
            did. None trains the recipe as it is.
        repetitions: Trainings of each detector on each set, each with a seed of its own.

    Raises:
        ImportError: KerasHub is not installed.
    """
    require_keras_hub()
    sources = [open_source(each) for each in data]
    report = Report("detectors", describe_machine())
    ratios: dict[str, list[float]] = {name: [] for name in (*FIGURES, "seconds")}
    for source in sources:
        rows: dict[str, list[list[float]]] = {}
        for seed in range(repetitions):
            recipe = override(get_recipe(FINETUNE), [f"preset={backbone}", f"seed={seed}"])
            with TemporaryDirectory(prefix="overfeat-benchmark-") as folder:
                if minutes is not None:
                    recipe = fit_to_time(recipe, source, 60 * minutes, Path(folder))
                both = {FINETUNE: train_ours(recipe, source, Path(folder) / "run")}
            both["RetinaNet"] = train_theirs(backbone, recipe, source, both[FINETUNE].seconds)
            seconds = time_images(source, recipe.val_split, [each.model for each in both.values()])
            for (name, trained), each in zip(both.items(), seconds, strict=True):
                values = [trained.seconds / 60, *(trained.figures[figure] for figure in FIGURES), each]
                rows.setdefault(name, []).append(values)
            ours, theirs = (each[-1] for each in rows.values())
            for name, one, other in zip(ratios, ours[1:], theirs[1:], strict=True):
                ratios[name].append(one / other if other else float("inf"))
        report.tables.append(_table(source.name, rows))
    what = f"`{FINETUNE}` over KerasHub's RetinaNet, validation split of {', '.join(each.name for each in sources)}"
    for figure in FIGURES:
        report.add(f"{figure}_over_retinanet", ratios[figure], what, (">=", 1.0))
    report.add("seconds_over_retinanet", ratios["seconds"], "time of an image of 500x375")
    return report


def fit_to_time(recipe: Recipe, source: Source, seconds: float, folder: Path) -> Recipe:
    """Scale the steps of all stages so that training takes about so many seconds.

    Two short trainings tell what a step takes, and what does not depend on the steps: tracing, validation, calibration.
    """
    sized = recipe.sized(source)
    one, other = (_seconds_of(_scaled(sized, share), source, folder / f"pilot{share}") for share in PILOTS)
    each = max(other - one, 1e-9) / (PILOTS[1] - PILOTS[0])
    share = max(PILOTS[0] + (seconds - one) / each, PILOTS[0])
    log.info("%s: %.2f of the recipe's steps are to take %.1f minutes", source.name, share, seconds / 60)
    return _scaled(sized, share)


def _seconds_of(recipe: Recipe, source: Source, run: Path) -> float:
    started = computing_seconds()
    train(recipe, source, run)
    return computing_seconds() - started


def _scaled(recipe: Recipe, share: float) -> Recipe:
    """Return a recipe with a share of the steps of each stage."""
    stages = {name: getattr(recipe, name) for name in TASKS}
    fewer = {k: replace(s, steps=max(round(s.steps * share), 1), passes=None) for k, s in stages.items()}
    return replace(recipe, **fewer)


def train_ours(recipe: Recipe, source: Source, run: Path) -> Trained:
    """Train the recipe and score it."""
    started = computing_seconds()
    model = train(recipe, source, run).model
    seconds = computing_seconds() - started
    return _scored(FINETUNE, with_changes(model, {}), seconds, source, recipe.val_split)


def train_theirs(backbone: str, recipe: Recipe, source: Source, seconds: float) -> Trained:
    """Train RetinaNet for so many seconds and score it."""
    started = computing_seconds()
    model = train_retinanet(backbone, source, recipe.train_split, seconds, recipe.seed)
    return _scored("RetinaNet", model, computing_seconds() - started, source, recipe.val_split)


def _scored(name: str, model: Predictor, seconds: float, source: Source, split: str) -> Trained:
    figures = evaluate(model, source, split, title=name)
    shown = ", ".join(f"{figure} {figures[figure]:.3f}" for figure in FIGURES)
    log.info("%s on %s: %.1f minutes, %s", name, source.name, seconds / 60, shown)
    return Trained(model, seconds, figures)


def time_images(source: Source, split: str, models: Sequence[Predictor]) -> list[float]:
    """Time each model on the split's first image, resized to 500x375, in turns; return the medians in seconds."""
    image, _ = decode_image(next(source.records(split)).image_bytes)
    pixels = tf.cast(tf.image.resize(image, SIZE, antialias=True), tf.uint8).numpy()[None]
    for model in models:
        model.detect(pixels)
    times = [[time_call(partial(model.detect, pixels)) for model in models] for _ in range(CALLS)]
    return [median(each) for each in zip(*times, strict=True)]


def _table(name: str, rows: dict[str, list[list[float]]]) -> str:
    """Render the medians over the repetitions in Markdown."""
    lines = []
    for detector, values in rows.items():
        minutes, *others = (median(column) for column in zip(*values, strict=True))
        lines.append((detector, f"{minutes:.1f}", *(f"{value:.3f}" for value in others)))
    return markdown_table((name, "minutes", "mAP50", "mAP", "AP75", "s an image"), lines)
