"""Begin or resume the run of a folder: what it is fitted to, and that this has not changed since."""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from math import ceil
from pathlib import Path

import keras
import tensorflow as tf

from overfeat_tf.compute.choice import choose_precision
from overfeat_tf.models.loading import read_config
from overfeat_tf.models.model import CONFIG, TASKS, Model
from overfeat_tf.network.convnet import Network, build
from overfeat_tf.network.presets import PRESETS, Preset
from training.fit.stages import count_frozen
from training.fit.strategy import barrier
from training.fit.transfer import start_from
from training.recipes import Recipe, read_recipe
from training.run import folder as run_folder
from training.run.checkpoints import last_step, renew_patience
from training.sources import SOURCES
from training.sources.dataset import DatasetSource
from training.sources.record import Source, check_classes
from training.views.coverage import Objects

log = logging.getLogger(__name__)


def network_of(recipe: Recipe, run: Path) -> Preset:
    """Return the network of the run in the folder, or else the recipe's: a backbone's file is read only to begin."""
    if (run / CONFIG).is_file():
        with suppress(ValueError, KeyError, TypeError):  # `open_run` raises it
            return Preset.from_config(read_config(run)["model"]["preset"])
    return recipe.network


def open_run(
    recipe: Recipe,
    source: Source,
    run: Path,
    stages: Sequence[str],
    start: Path | None,
    is_chief: bool,
    objects: Callable[[], Objects],
) -> Model:
    """Resume the run in the folder, or begin one.

    Args:
        recipe, source, run, stages: What is fitted to what, where, and which stages are asked for.
        start: A run whose weights a new run starts from.
        is_chief: Whether this process writes in the folder.
        objects: Reads the training split's objects, where a new run chooses its scales from them.

    Raises:
        ValueError: the folder's run began with other settings, data or classes, or is damaged.
    """
    if (run / CONFIG).is_file():
        return _resume(recipe, source, run)
    preset = recipe.network
    if recipe.scales != "preset":
        preset = replace(preset, scales=recipe.scales_for(preset, objects()))
    network = build(
        preset,
        len(source.class_names),
        per_class=recipe.per_class,
        box_form=recipe.box_form,
        context=recipe.context,
    )
    count_frozen(recipe, network)  # refuses an unknown layer before the folder keeps the recipe
    model = Model(network, source.class_names, recipe.inference, tasks=())
    pretrained = recipe.preset not in PRESETS and recipe.weights is not None
    if pretrained:
        network.backbone.set_weights(recipe.backbone()[1].get_weights())
    if start is not None:
        model = start_from(model, start)
    if is_chief and (start is not None or pretrained):  # so that a resumed run needs the other one no more
        run_folder.commit(run, config_of(model, recipe, source, run, stages, start), model.save_weights)
    elif is_chief:
        run_folder.write_config(run, config_of(model, recipe, source, run, stages))
    return model


def finished(run: Path) -> tuple[str, ...]:
    """Return which stages of the folder's run are done, if there is one, and not continued."""
    tasks = read_config(run)["model"].get("tasks", ()) if (run / CONFIG).is_file() else ()
    return tuple(stage for stage in tasks if stage != continued(run))


def continued(run: Path) -> str | None:
    """Return the finished stage of the folder's run that goes on for more steps, if any."""
    return read_config(run).get("continued") if (run / CONFIG).is_file() else None


def resumed(run: Path) -> tuple[Recipe, str, tuple[str, ...]]:
    """Return the recipe, the SOURCE and the stages that the folder's run began with.

    Raises:
        ValueError: there is no run, one that was imported, or one of a later version.
    """
    config = read_config(run)
    if not config.get("training"):
        raise ValueError(f"expected a run that was trained; '{run}' was not: it is imported, or damaged")
    return read_recipe(config["training"]), config["training"]["data"], tuple(config.get("stages", TASKS))


def check_openable(data: str, run: Path) -> None:
    """Raise ValueError where the run began with data from Python, of which `data` is but the name."""
    training = (read_config(run).get("training") or {}) if (run / CONFIG).is_file() else {}
    if training.get("data") == data and not _is_spec(data):
        what = data if data == DatasetSource.name else f"source '{data}'"
        raise ValueError(
            f"expected overfeat_tf.train(..., run='{run}') with the {what} that it began with; the command line cannot "
            "open it"
        )


def add_steps(run: Path, steps: int) -> None:
    """Let the last stage of a finished run go on for more steps, to the end of an epoch, as a stage as long as that.

    Raises:
        ValueError: the run is not finished, or its checkpoint is gone.
    """
    recipe, _, stages = resumed(run)
    config, done = read_config(run), finished(run)
    if not set(stages) <= set(done):
        raise ValueError(
            f"expected a finished run to continue; '{run}' is not: `overfeat train --run {run}` resumes it"
        )
    stage = [name for name in TASKS if name in done][-1]
    folder, schedule = run / "checkpoints" / stage, getattr(recipe, stage)
    last = last_step(folder)  # earlier than the schedule's where the stage ended early
    if last is None:
        raise ValueError(f"expected the checkpoint of {stage} in '{run / 'checkpoints'}'; it is gone: use --from {run}")
    epochs = ceil((last + steps) / schedule.epoch_steps)  # of the length that they have had so far
    longer = replace(schedule, steps=epochs * schedule.epoch_steps, epochs=epochs)
    log.info("%s goes on to step %d, the end of epoch %d", stage, longer.steps, epochs)
    config["training"][stage] |= {"steps": longer.steps, "epochs": longer.epochs}
    with run_folder.held(run):
        renew_patience(folder, last)
        run_folder.write_config(run, {**config, "continued": stage})


def has_features(model: Model, run: Path) -> bool:
    """Return whether the features of the folder's run have learnt anything."""
    telling = {"classification", "detection"} if len(model.labels) > 1 else {"detection"}
    pretrained = not model.network.preset.backbone.is_chain
    return bool(pretrained or telling & set(model.tasks) or read_config(run).get("started_from"))


def config_of(
    model: Model,
    recipe: Recipe,
    source: Source,
    run: Path,
    stages: Sequence[str],
    start: Path | None = None,
    kept: dict | None = None,
) -> dict:
    """Describe a run: its model, what that is fitted to, the run that it started from, and the weights of each stage.

    To the stages and weights given come those that the run's configuration has.
    """
    before = read_config(run) if (run / CONFIG).is_file() else {}
    return {
        "model": model.config(),
        "training": _described(recipe, source),
        "stages": [stage for stage in TASKS if stage in (*stages, *before.get("stages", ()))],
        "started_from": str(start) if start is not None else before.get("started_from"),
        "precision": before.get("precision"),
        "kept": {**(before.get("kept") or {}), **(kept or {})},
    }


def with_precision(recipe: Recipe, network: Network, run: Path, is_chief: bool) -> Recipe:
    """Return the recipe with the precision that its run computes in: chosen as it begins, where that is "auto"."""
    if recipe.precision != "auto":
        return recipe
    strategy, kept = tf.distribute.get_strategy(), read_config(run).get("precision")
    barrier(strategy)
    if not kept:
        choice = choose_precision(network)  # by every worker, since all make the same variables; one worker's counts
        if is_chief:
            log.info("precision: %s; %s", *choice)
            run_folder.write_config(run, {**read_config(run), "precision": choice.arithmetic})
    barrier(strategy)
    return replace(recipe, precision=read_config(run)["precision"])


def _resume(recipe: Recipe, source: Source, run: Path) -> Model:
    """Read the folder's run, unless it began with another recipe, data or classes."""
    config = read_config(run)
    if not {"model", "training"} <= config.keys():
        raise ValueError(f"expected the configuration of a run in '{run / CONFIG}'; it is damaged: use another --run")
    changed = _changes(json.loads(json.dumps(asdict(read_recipe(config["training"])))), _described(recipe, source))
    if changed:
        # Steps follow from the number of images where a schedule has `passes`.
        hint = "; has the number of images changed?" if all(name.endswith(".steps") for name in changed) else ""
        as_it_is = ""
        if _is_spec(config["training"]["data"]):  # else the command line cannot open it
            as_it_is = f", or `overfeat train --run {run}`, which resumes it as it is"
        raise ValueError(
            f"expected the settings that '{run}' began with, or another --run{as_it_is}; {', '.join(changed)} "
            f"differ{hint}"
        )
    model = Model.from_config(config["model"])
    check_classes(model.labels, source)
    if (run / "weights").is_dir():  # a finished stage's, or those that it started from
        model.load_weights(run / "weights")
    elif model.tasks:
        raise ValueError(f"expected '{run / 'weights'}', left by {model.tasks[-1]}; it is gone: use another --run")
    return model


def _is_spec(data: str) -> bool:
    """Return whether the name of a run's data is a SOURCE of the command line."""
    return data.partition(":")[0] in SOURCES


def _changes(began: dict, now: dict) -> list[str]:
    """Name the settings that differ, within a stage too; an upgrade of TensorFlow does not end a run."""
    changed = []
    for key, value in now.items():
        before = began.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            changed += [f"{key}.{name}" for name in value if before.get(name) != value[name]]
        elif key != "versions" and before != value:
            changed.append(key)
    return changed


def _described(recipe: Recipe, source: Source) -> dict:
    """Describe what a run is fitted to, in JSON's own types."""
    versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
    return json.loads(json.dumps({**asdict(recipe), "data": source.name, "versions": versions}))
