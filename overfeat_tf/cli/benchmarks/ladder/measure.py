"""Train and score every variant of the paper's choices on several seeds; render results as tables and a picture."""

import gc
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import keras
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from overfeat_tf.cli.benchmarks.harness import describe_machine, markdown_table
from overfeat_tf.cli.benchmarks.ladder.choices import LADDERS, Choice, Ladder, Variant
from overfeat_tf.cli.benchmarks.merging import Predictions, by_suppression
from overfeat_tf.models.loading import load_run, read_config
from overfeat_tf.models.model import CONFIG, Model
from overfeat_tf.models.tasks import CLASSIFICATION, DETECTION
from training.evaluation.evaluate import evaluate
from training.evaluation.ladders import FixedBox, median_box
from training.fit.train import train
from training.recipes import Recipe, get_recipe, override
from training.sources import open_source
from training.sources.record import Source, check_split

RESULTS = "ladder.json"
SHOWN = {
    "detection": ("map50", "map"),
    "classification": ("top1_error", "top5_error"),
    "localization": ("localization1_error", "localization5_error"),
}

ROW, HEAD, LABELS, PANEL = 0.25, 0.9, 3.2, 3.4  # inches
FIRST, BETTER, WORSE, UNDECIDED = "0.45", "tab:green", "tab:red", "tab:blue"
LINEAR = 0.02  # differences up to this are drawn to scale, larger ones by their logarithm
TICKS = (-0.5, -0.1, -0.02, 0, 0.02, 0.1, 0.5)

log = logging.getLogger(__name__)

Variants = dict[str, dict[str, list[float]]]
# Figures by runs, options and protocol: several choices share a variant.
Cache = dict[tuple, dict[str, float]]


class EvaluationSet(NamedTuple):
    """The images to score on: a source's split, or its first `limit` images."""

    source: Source
    split: str
    limit: int | None


def measure(
    name: str,
    data: str | None,
    folder: Path,
    seeds: Sequence[int],
    settings: Sequence[str] = (),
    limit: int | None = None,
    backbone: str | None = None,
) -> dict:
    """Train the missing runs and score each variant of each choice. Another call resumes where the last one stopped.

    Args:
        name: A name in `LADDERS`.
        data: SOURCE; by default the recipe's own.
        folder: The folder for runs and results.
        seeds: Every variant is trained once per seed; differences are taken within a seed.
        settings: More changes to the recipe.
        limit: Number of images to score.
        backbone: What "finetune" starts from, as for `overfeat train`; by default the recipe's own.

    Returns:
        The content of `ladder.json` in the folder, in JSON's types. "found" has by choice, variant and figure a list of
        one value per seed, or a single value for a committee.

    Raises:
        ValueError: no such ladder, a backbone for one that has none, no split to score on, or the folder holds results
            of other settings.
    """
    if name not in LADDERS:
        raise ValueError(f"expected a ladder, one of {', '.join(LADDERS)}; got '{name}'")
    ladder = LADDERS[name]
    if backbone is not None:
        if ladder.recipe != "finetune":
            raise ValueError(f"expected --backbone with the ladder 'finetune'; got '{name}'")
        ladder = replace(ladder, pinned=(*ladder.pinned, f"preset={backbone}"))
    ladder = replace(ladder, settings=(*ladder.settings, *settings))
    recipe = override(get_recipe(ladder.recipe), [*ladder.pinned, *ladder.settings])
    if data is None and recipe.data is None:
        raise ValueError(f"expected --data SOURCE: the ladder '{name}' has no data of its own")
    source = open_source(data or str(recipe.data))
    check_split(source, recipe.val_split)
    if len(source.class_names) == 1 and DETECTION.name in ladder.stages:  # there is nothing to classify
        stages = tuple(stage for stage in ladder.stages if stage != CLASSIFICATION.name)
        choices = tuple(choice for choice in ladder.choices if choice.protocol in stages)
        ladder = replace(ladder, stages=stages, choices=choices)
    config = {"ladder": name, "data": source.name, "settings": [*ladder.settings], "seeds": [*seeds], "limit": limit}
    config["backbone"] = backbone and Path(backbone).stem
    results = _read_or_create(folder / RESULTS, config)
    scored = EvaluationSet(source, recipe.val_split, limit)
    cache: Cache = {}
    for choice in ladder.choices:
        for variant in choice.variants:
            if results["found"].get(choice.name, {}).get(variant.name):
                continue
            figures = _score(ladder, choice, variant, scored, folder, seeds, cache)
            results["found"].setdefault(choice.name, {})[variant.name] = figures
            _write(folder / RESULTS, results)
            log.info("%s: %s: %s", choice.name, variant.name, _in_words(figures))
    return results


def _read_or_create(path: Path, config: dict) -> dict:
    """Read the results of an earlier call, or create the file."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        results = {**config, "machine": describe_machine(), "found": {}}
        _write(path, results)  # before the training, so that a call with other settings does not use its runs
        return results
    results = json.loads(path.read_text())
    changed = [key for key, value in config.items() if results.get(key) != value]
    if changed:
        raise ValueError(f"expected the {', '.join(changed)} that '{path}' began with; use those, or another --out")
    return results


def _write(path: Path, results: dict) -> None:
    """Write the results atomically: a killed process must not lose hours of them."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    partial.replace(path)


def _score(
    ladder: Ladder,
    choice: Choice,
    variant: Variant,
    scored: EvaluationSet,
    folder: Path,
    seeds: Sequence[int],
    cache: Cache,
) -> dict[str, list[float]]:
    """Return the values of each figure, one per seed."""
    runs = [_trained(ladder, variant, seed, scored.source, folder) for seed in seeds]
    figures: dict[str, list[float]] = {}
    for members in [runs] if variant.committee else [[run] for run in runs]:
        models = [load_run(run) for run in members]
        model = (Model.committee(models) if variant.committee else models[0]).with_options(**variant.changes)
        key = (*members, choice.protocol, model.options, variant.suppress, variant.fixed_box)
        if key not in cache:
            cache[key] = _figures(model, choice.protocol, variant, scored)
        found = cache[key]
        for shown in SHOWN[choice.protocol]:
            figures.setdefault(shown, []).append(found[shown])
    # Free the traced functions and networks of earlier variants.
    keras.backend.clear_session()
    gc.collect()
    return figures


def _figures(model: Model, protocol: str, variant: Variant, scored: EvaluationSet) -> dict[str, float]:
    source, split, limit = scored
    if variant.suppress is not None:
        combine = by_suppression(variant.suppress, len(source.class_names), model.options.max_detections)
        found = Predictions(model, source, split, limit).score(combine)
        return {"map50": found.map50, "map": found.map}
    if variant.fixed_box:
        box = median_box(source, quiet=True)
        if box is None:
            raise ValueError(
                f"expected objects with boxes in split 'train' of {source.name}, for the median box; there are none"
            )
        fixed = FixedBox(box)
        evaluate(model, source, split, (protocol,), limit, quiet=True, callbacks={protocol: [fixed.process]})
        return fixed.errors()
    return evaluate(model, source, split, (protocol,), limit, quiet=True)


def _trained(ladder: Ladder, variant: Variant, seed: int, source: Source, folder: Path) -> Path:
    """Train the run of a variant and seed if it is missing; return its folder."""

    def recipe(settings: Sequence[str]) -> Recipe:
        return override(get_recipe(ladder.recipe), [*ladder.pinned, *ladder.settings, *settings, f"seed={seed}"])

    def fitted(name: str, settings: Sequence[str], stages: Sequence[str], start: Path | None = None) -> Path:
        run = folder / f"{name}-{seed}"
        if (run / CONFIG).is_file() and {*stages} <= {*read_config(run)["model"]["tasks"]}:
            return run
        log.info("training %s: %s", run, ", ".join(stages))
        train(recipe(settings), source, run, stages, start=start)
        keras.backend.clear_session()
        return run

    name = re.sub(r"\W+", "-", "-".join(variant.settings)) or "base"
    if variant.from_scratch:
        return fitted(name, variant.settings, ladder.stages)
    first = fitted(ladder.stages[0], (), ladder.stages[:1])
    return fitted(name, variant.settings, ladder.stages[1:], first)


def as_markdown(results: dict) -> str:
    """Render a table for each choice: means, ranges, and differences from the first variant."""
    tables: list[str] = []
    for choice, variants in results["found"].items():
        base = next(iter(variants.values()))
        rows = [
            (
                name,
                *(cell for key in base for cell in (_with_range(figures[key]), _difference(figures[key], base[key]))),
            )
            for name, figures in variants.items()
        ]
        titles = ("variant", *(title for key in base for title in (key, "difference")))
        tables.append(f"**{choice}**\n\n{markdown_table(titles, rows)}\n")
    return "\n".join(tables)


def _with_range(values: list[float], style: str = "{:.3f}") -> str:
    text = style.format(mean(values))
    return text if len(values) == 1 else f"{text} ({style.format(min(values))} to {style.format(max(values))})"


def _difference(values: list[float], base: list[float]) -> str:
    return "" if values is base else _with_range(differences(values, base), "{:+.3f}")


def differences(values: list[float], base: list[float]) -> list[float]:
    """Subtract the first variant's values: seed by seed, and for a committee from the value of each member."""
    pairs = zip(values, base, strict=True) if len(values) == len(base) else ((mean(values), other) for other in base)
    return [value - other for value, other in pairs]


def _in_words(figures: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {_with_range(values)}" for name, values in figures.items())


def draw(results: dict, path: Path) -> None:
    """Draw the results of `ladder.measure` into a PNG file.

    Each variant has a row, each of the two figures of its choice a panel. A dot shows the mean difference from the
    first variant, a line the range over seeds or over a committee's members. They are green or red where all agree on
    which variant is better, and blue where they do not.
    """
    rows: list[tuple[str, Variants, str | None]] = []
    for choice, variants in results["found"].items():
        rows += [(choice, variants, None), *((name, variants, name) for name in variants)]
    size = (LABELS + 2 * PANEL, HEAD + ROW * len(rows))
    picture = Figure(figsize=size, layout="constrained")
    panels = picture.subplots(1, 2, sharey=True)
    for number, axes in enumerate(panels):
        for place, (_, variants, variant) in enumerate(rows):
            _row(axes, place, variants, variant, number)
        _style(axes, len(rows))
    panels[0].set_yticks(range(len(rows)), [name for name, *_ in rows])
    for label, (*_, variant) in zip(panels[0].get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if variant is None else "normal")
    picture.suptitle(f"{results['ladder']}, {len(results['seeds'])} seeds: difference from each choice's first variant")
    picture.savefig(path, dpi=110)


def _row(axes: Axes, place: int, variants: Variants, variant: str | None, number: int) -> None:
    """Draw a variant's difference in its choice's figure of that number; without a variant, the figure's name."""
    first = next(iter(variants.values()))
    figure = [*first][number]
    if variant is None:
        axes.text(0.01, place, figure, transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=FIRST)
        return
    values, base = variants[variant][figure], first[figure]
    found = differences(values, base)
    colour = _colour([-value if figure.endswith("_error") else value for value in found])
    axes.plot([min(found), max(found)], [place, place], color=colour, linewidth=2)
    axes.plot([mean(found)], [place], "o", color=colour, markersize=5)
    axes.text(1.01, place, f"{mean(values):.3f}", transform=axes.get_yaxis_transform(), va="center", fontsize=8)


def _colour(gains: list[float]) -> str:
    return BETTER if min(gains) > 0 else WORSE if max(gains) < 0 else UNDECIDED if any(gains) else FIRST


def _style(axes: Axes, rows: int) -> None:
    axes.axvline(0, color=FIRST, linewidth=0.8)
    axes.set_xscale("symlog", linthresh=LINEAR, linscale=1.0)
    axes.set_xlim(-0.6, 0.6)
    axes.set_xticks(TICKS, [f"{tick:+g}" if tick else "0" for tick in TICKS], fontsize=7)
    axes.minorticks_off()
    axes.set_ylim(rows - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
