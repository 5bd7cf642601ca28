"""Fit a recipe, stage by stage, with `model.fit`; the same call takes up a broken run."""

import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import keras
import tensorflow as tf

from overfeat_tf.loading import read_config
from overfeat_tf.model import CONFIG, TASKS, Model
from overfeat_tf.network import build
from overfeat_tf.presets import get_preset
from training import crops, pipeline
from training.boards import stage_boards
from training.callbacks import Checkpoints, FiniteLoss, Report
from training.recipes import Recipe, with_later_fields
from training.sources import Source
from training.sources.record import check_split
from training.stages import stage_model, with_background
from training.start import start_from

VALIDATION_BATCHES = 4
PREFETCHED = 4  # batches ready while a step runs: enough to even out slow images

log = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    source: Source,
    run: Path,
    stages: Sequence[str] = TASKS,
    start: Path | None = None,
    profile: bool = False,
) -> Model:
    """Fit the stages in their order, and leave configuration, checkpoints, logs and weights in the run's folder.

    Resuming: (1) a stage whose name is in the configuration's tasks is done and skipped; (2) a stage under way goes
    on from its last checkpoint, at most an epoch back; (3) the recipe must be the one that the run began with.

    Args:
        recipe: What to fit, and how.
        source: The data.
        run: The run's folder, made if missing.
        stages: Of `TASKS`.
        start: A run whose weights a new run starts from (`training.start`); one that is taken up has its own.
        profile: Trace a few steps of each stage for TensorBoard's profiler.

    Raises:
        ValueError: unknown stage, a recipe that does not suit the network or the data, or the folder holds a run of
            other settings, or one that is past the stage.
        FloatingPointError: a loss that is not finite.
    """
    unknown = [stage for stage in stages if stage not in TASKS]
    if unknown:
        raise ValueError(f"expected stages of {', '.join(TASKS)}; got '{unknown[0]}'")
    _check(recipe, source, stages)
    keras.utils.set_random_seed(recipe.seed)
    strategy = choose_strategy()
    with strategy.scope():
        model = _open_run(recipe, source, run, start)
        for stage in TASKS:
            if stage not in stages or stage in model.tasks:
                continue
            if stage == "classification" and model.network.background:
                raise ValueError(
                    f"expected '{run}' to be fitted for classification before detection: use another --run"
                )
            if stage == "detection" and not model.network.background:
                model = with_background(model)
            _fit(stage, model, recipe, source, run, profile)
            model = replace(model, tasks=(*model.tasks, stage))
            _save(model, recipe, source, run)
    return model


def _check(recipe: Recipe, source: Source, stages: Sequence[str]) -> None:
    """Raise ValueError at once for what would end a later stage, or keep one waiting for ever."""
    preset = get_preset(recipe.preset)
    recipe.inference.scale_sizes(preset)
    least = preset.smallest_input if recipe.fine else preset.window
    if recipe.side < least:
        raise ValueError(f"expected side to be at least {least} pixels for '{preset.name}'; got {recipe.side}")
    check_split(source, recipe.train_split)
    placing = [stage for stage in stages if stage != "classification"]
    if placing and not source.boxed:
        raise ValueError(
            f"expected boxes for {placing[0]}; {source.name} has classes alone: train it with --stage classification"
        )
    for split in {recipe.train_split, recipe.val_split} & set(source.splits):
        if not any(record.boxed.any() if placing else len(record.labels) for record in source.records(split)):
            kind = "objects with boxes" if placing else "objects"
            raise ValueError(f"expected {kind} in split '{split}' of {source.name}; there are none")


def choose_strategy() -> tf.distribute.Strategy:
    """Mirror the model on all GPUs where there are several (or several logical CPUs); else the default strategy."""
    for kind in ("GPU", "CPU"):
        devices = [device.name for device in tf.config.list_logical_devices(kind)]
        if len(devices) > 1:
            return tf.distribute.MirroredStrategy(devices)
        if devices:
            return tf.distribute.get_strategy()
    return tf.distribute.get_strategy()


def _open_run(recipe: Recipe, source: Source, run: Path, start: Path | None) -> Model:
    """Take up the run in the folder, or begin one."""
    run.mkdir(parents=True, exist_ok=True)
    if not (run / CONFIG).is_file():
        network = build(
            recipe.preset,
            len(source.class_names),
            per_class=recipe.per_class,
            box_form=recipe.box_form,
            context=recipe.context,
        )
        model = Model(network, source.class_names, recipe.inference, tasks=())
        if start is None:
            _write_config(model, recipe, source, run)
            return model
        model = start_from(model, start)
        _save(model, recipe, source, run)  # so that a resumed run needs the other one no more
        return model
    config = read_config(run)
    now = _described(recipe, source)
    began = with_later_fields(config["training"])
    # An upgrade of TensorFlow does not end a run.
    changed = [key for key in now if key != "versions" and began.get(key) != now[key]]
    if changed:
        raise ValueError(
            f"expected the settings that '{run}' began with; {', '.join(changed)} differ: use another --run, or those"
        )
    model = Model.from_config(config["model"])
    if (run / "weights").is_dir():  # a finished stage's, or those that it started from
        model.load_weights(run / "weights")
    return model


def _fit(stage: str, model: Model, recipe: Recipe, source: Source, run: Path, profile: bool = False) -> None:
    schedule = getattr(recipe, stage)
    fitted = stage_model(stage, model.network, recipe)
    checkpoints = Checkpoints(run / "checkpoints" / stage, fitted)
    done = checkpoints.resume()
    if done:
        log.info("%s: going on after epoch %d of %d", stage, done, schedule.epochs)
    steps = max(1, schedule.steps // schedule.epochs)
    validation = None
    callbacks: list[keras.callbacks.Callback] = [FiniteLoss(stage, steps), checkpoints]
    if stage != "detection" and recipe.val_split in source.splits:
        validation = _batches(stage, model, recipe, source, recipe.val_split, recipe.seed)
    callbacks += stage_boards(stage, model, recipe, source, run / "logs" / stage, steps, profile)
    if not sys.stderr.isatty():
        callbacks.append(Report(lambda line: print(line, file=sys.stderr, flush=True), stage, schedule.epochs))
    fitted.fit(
        # A resumed run draws other views than those it has seen.
        _batches(stage, model, recipe, source, recipe.train_split, recipe.seed + done),
        epochs=schedule.epochs,
        initial_epoch=done,
        steps_per_epoch=steps,
        validation_data=validation,
        validation_steps=VALIDATION_BATCHES if validation is not None else None,
        callbacks=callbacks,
        shuffle=False,  # the pipeline does
        verbose=1 if sys.stderr.isatty() else 0,
    )


def _batches(stage: str, model: Model, recipe: Recipe, source: Source, split: str, seed: int) -> tf.data.Dataset:
    schedule, preset = getattr(recipe, stage), model.network.preset
    data = pipeline.records(source, split, seed)
    if stage == "classification" and recipe.views.plain:
        batches = crops.crop_batches(data, preset, recipe.views, schedule.batch, seed)
    elif stage == "classification":
        batches = pipeline.classification_batches(data, preset, recipe.matching, recipe.views, schedule.batch, seed)
    else:
        batches = pipeline.spatial_batches(
            data, preset, recipe.matching, recipe.views, schedule.batch, recipe.side, recipe.fine, seed
        )
    if stage == "localization" and not recipe.through_features:
        batches = batches.map(lambda pixels, targets: (pixels, {"boxes": targets["boxes"]}))
    # Last, so that decoding and drawing run while a step does.
    return batches.prefetch(PREFETCHED)


def _save(model: Model, recipe: Recipe, source: Source, run: Path) -> None:
    """Write the weights beside and rename them into place, then say so in the configuration."""
    beside = run / "weights.new"
    shutil.rmtree(beside, ignore_errors=True)
    model.save_weights(beside)
    shutil.rmtree(run / "weights", ignore_errors=True)
    beside.rename(run / "weights")
    _write_config(model, recipe, source, run)


def _write_config(model: Model, recipe: Recipe, source: Source, run: Path) -> None:
    config = {"model": model.config(), "training": _described(recipe, source)}
    (run / f"{CONFIG}.new").write_text(json.dumps(config, indent=2) + "\n")
    os.replace(run / f"{CONFIG}.new", run / CONFIG)


def _described(recipe: Recipe, source: Source) -> dict:
    """Describe what a run is fitted to, in JSON's own types."""
    return json.loads(json.dumps({**asdict(recipe), "data": source.name, "versions": _versions()}))


def _versions() -> dict[str, str]:
    return {"tensorflow": tf.__version__, "keras": keras.__version__}
