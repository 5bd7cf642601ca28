"""Where the paper's ideas pay: each choice beside its alternatives, on several seeds (`overfeat benchmark ladder`)."""

import gc
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

import keras

from overfeat_tf.cli.benchmarks.ladder.ways import LADDERS, Ladder, Question, Way
from overfeat_tf.cli.benchmarks.machine import describe
from overfeat_tf.cli.benchmarks.suppression import Predictions, suppression
from overfeat_tf.models.loading import load_run, read_config
from overfeat_tf.models.model import CONFIG, Model
from training.evaluation.evaluate import evaluate
from training.evaluation.ladders import FixedBox, median_box
from training.fit.train import train
from training.recipes import Recipe, get_recipe, override
from training.sources import Source, open_source

RESULTS = "ladder.json"
SHOWN = {
    "detection": ("map50", "map"),
    "classification": ("top1_error", "top5_error"),
    "localization": ("localization1_error", "localization5_error"),
}

log = logging.getLogger(__name__)
Known = dict[tuple, dict[str, float]]  # what runs, options and protocol gave, since ways of several questions coincide


def measure(
    name: str,
    data: str | None,
    folder: Path,
    seeds: Sequence[int],
    settings: Sequence[str] = (),
    limit: int | None = None,
) -> dict:
    """Train what is not there yet, and score each way of each question; called again it goes on where it was.

    Args:
        name: Of `LADDERS`.
        data: SOURCE; the recipe's own if None.
        folder: Where runs and results go.
        seeds: One training of everything for each; a difference is taken within a seed.
        settings: Further changes of the recipe's.
        limit: Images that are scored.

    Returns:
        What `ladder.json` in the folder then has, in JSON's types; "found" is, by question, way and figure, a value for
        each seed, or one in all for a committee.

    Raises:
        ValueError: no such ladder, or the folder has one of other settings.
    """
    if name not in LADDERS:
        raise ValueError(f"expected a ladder, one of {', '.join(LADDERS)}; got '{name}'")
    ladder = LADDERS[name]
    ladder = replace(ladder, settings=(*ladder.settings, *settings))
    recipe = override(get_recipe(ladder.recipe), [*ladder.pinned, *ladder.settings])
    if data is None and recipe.data is None:
        raise ValueError(f"expected --data SOURCE: the ladder '{name}' has no data of its own")
    source = open_source(data or str(recipe.data))
    asked = {"ladder": name, "data": source.name, "settings": [*ladder.settings], "seeds": [*seeds], "limit": limit}
    results = _begun(folder / RESULTS, asked)
    known: Known = {}
    for question in ladder.questions:
        for way in question.ways:
            if results["found"].get(question.name, {}).get(way.name):
                continue
            figures = _score(ladder, question, way, source, folder, seeds, limit, known)
            results["found"].setdefault(question.name, {})[way.name] = figures
            _write(folder / RESULTS, results)
            log.info("%s: %s: %s", question.name, way.name, _said(figures))
    return results


def _begun(path: Path, asked: dict) -> dict:
    """Read what an earlier call has found, or begin."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        results = {**asked, "machine": describe(), "found": {}}
        _write(path, results)  # before hours of training, whose runs others must not take for theirs
        return results
    results = json.loads(path.read_text())
    changed = [key for key, value in asked.items() if results.get(key) != value]
    if changed:
        raise ValueError(f"expected the {', '.join(changed)} that '{path}' began with; use another --out, or those")
    return results


def _write(path: Path, results: dict) -> None:
    """Write results in one step: hours of them must survive a kill."""
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps(results, indent=1) + "\n")
    beside.replace(path)


def _score(
    ladder: Ladder,
    question: Question,
    way: Way,
    source: Source,
    folder: Path,
    seeds: Sequence[int],
    limit: int | None,
    known: Known,
) -> dict[str, list[float]]:
    """Give each figure's values, one a seed."""
    runs = [_trained(ladder, way, seed, source, folder) for seed in seeds]
    figures: dict[str, list[float]] = {}
    for members in [runs] if way.committee else [[run] for run in runs]:
        models = [load_run(run) for run in members]
        model = (Model.committee(models) if way.committee else models[0]).with_options(**way.changes)
        key = (*members, question.protocol, model.options, way.suppress, way.fixed_box)
        if key not in known:
            known[key] = _figures(model, question.protocol, way, source, ladder.split, limit)
        found = known[key]
        for shown in SHOWN[question.protocol]:
            figures.setdefault(shown, []).append(found[shown])
    # Traced functions and networks of past ways would add up.
    keras.backend.clear_session()
    gc.collect()
    return figures


def _figures(model: Model, protocol: str, way: Way, source: Source, split: str, limit: int | None) -> dict[str, float]:
    if way.suppress is not None:
        combine = suppression(way.suppress, len(source.class_names), model.options.max_detections)
        scored = Predictions(model, source, split, limit).score(combine)
        return {"map50": scored.map50, "map": scored.map}
    if way.fixed_box:
        box = median_box(source, quiet=True)
        if box is None:
            raise ValueError(
                f"expected boxes to take a fixed one from in split 'train' of {source.name}; there are none"
            )
        fixed = FixedBox(box)
        evaluate(model, source, split, (protocol,), limit, quiet=True, callbacks={protocol: [fixed.process]})
        return fixed.errors()
    return evaluate(model, source, split, (protocol,), limit, quiet=True)


def _trained(ladder: Ladder, way: Way, seed: int, source: Source, folder: Path) -> Path:
    """Train the run of a way and seed, unless it is there; ways that share the first stage share its weights."""

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

    name = re.sub(r"\W+", "-", "-".join(way.settings)) or "base"
    if way.whole:
        return fitted(name, way.settings, ladder.stages)
    first = fitted("classification", (), ladder.stages[:1])
    return fitted(name, way.settings, ladder.stages[1:], first)


def as_markdown(results: dict) -> str:
    """Render a table for each question: means, least to greatest, and `differences` from the first way."""
    lines: list[str] = []
    for question, ways in results["found"].items():
        base = next(iter(ways.values()))
        shown = [*base]
        heads = [head for name in shown for head in (name, "from the first")]
        lines += [f"**{question}**", "", f"| way | {' | '.join(heads)} |", f"|{' --- |' * (len(heads) + 1)}"]
        for name, figures in ways.items():
            cells = [cell for key in shown for cell in (_spread(figures[key]), _difference(figures[key], base[key]))]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _spread(values: list[float], style: str = "{:.3f}") -> str:
    text = style.format(mean(values))
    return text if len(values) == 1 else f"{text} ({style.format(min(values))} to {style.format(max(values))})"


def _difference(values: list[float], base: list[float]) -> str:
    return "" if values is base else _spread(differences(values, base), "{:+.3f}")


def differences(values: list[float], base: list[float]) -> list[float]:
    """Set values against the first way's: seed by seed, and a committee's one against that of each of its members."""
    pairs = zip(values, base, strict=True) if len(values) == len(base) else ((mean(values), other) for other in base)
    return [value - other for value, other in pairs]


def _said(figures: dict[str, list[float]]) -> str:
    shown: Callable[[list[float]], str] = _spread
    return ", ".join(f"{name} {shown(values)}" for name, values in figures.items())
