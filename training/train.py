"""Fit a recipe, stage by stage, with `model.fit`; the same call takes up a broken run."""

import errno
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path

import keras
import tensorflow as tf

from overfeat_tf.models.loading import read_config
from overfeat_tf.models.model import TASKS, Model
from training import crops, pipeline, run_folder
from training.allocation import keep_freed_memory
from training.boards import stage_boards
from training.calibrate import calibrate
from training.callbacks import FiniteLoss, Report
from training.checkpoints import Checkpoints
from training.coverage import ENOUGH, Objects, measure_coverage, read_objects, remedy
from training.ending import AskedToEnd
from training.opening import config_of, finished, has_features, open_run
from training.order import Bookmarks
from training.preflight import check
from training.recipes import Recipe, Schedule
from training.room import room
from training.sources import Source
from training.stages import seed_stage, stage_model, with_background
from training.strategy import choose_strategy, meet, more_parts, spread, writes

VALIDATION_BATCHES = 4
PREFETCHED = 4  # batches ready while a step runs: enough to even out slow images

log = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    source: Source,
    run: Path,
    stages: Sequence[str] = TASKS,
    strategy: tf.distribute.Strategy | None = None,
    start: Path | None = None,
    profile: bool = False,
) -> Model:
    """Fit the stages in their order, and leave configuration, checkpoints, logs and weights in the run's folder.

    Resuming: (1) a stage whose name is in the configuration's tasks is done and skipped; (2) a stage under way goes
    on from its last checkpoint and ends with the weights of an unbroken run (`Checkpoints`), whenever the process was
    killed; (3) the recipe must be the one that the run began with.

    Args:
        recipe: What to fit, and how.
        source: The data.
        run: The run's folder, made if missing; shared by all workers, if there are several, of which one writes.
        stages: Of `TASKS`.
        strategy: As `choose_strategy` gives it, which several workers have to call before anything else.
        start: A run whose weights a new run starts from (`training.start`); one that is taken up has its own.
        profile: Trace a few steps of each stage for TensorBoard's profiler.

    Raises:
        ValueError: unknown stage, a recipe that does not suit the network or the data, or the folder holds a run of
            other settings, or one that is past the stage, or one that another process is training.
        OSError: the folder cannot be written in, or its disk has no room for the run.
        ImportError: pycocotools is not there, by which detection is validated.
        FloatingPointError: a loss or a weight that is not finite.
        RuntimeError: a batch does not fit the device.
    """
    unknown = [stage for stage in stages if stage not in TASKS]
    if unknown:
        raise ValueError(f"expected stages of {', '.join(TASKS)}; got '{unknown[0]}'")
    keep_freed_memory()
    strategy = strategy or choose_strategy()
    check(recipe, source, stages, strategy)
    if start is not None:
        read_config(start)  # said before there is a folder
    keras.utils.set_random_seed(recipe.seed)
    with run_folder.held(run) if writes(strategy) else nullcontext(), strategy.scope():
        if writes(strategy):
            run_folder.mend(run)
            if not set(stages) <= set(finished(run)):
                run_folder.require_room(run, room(recipe, len(source.class_names)))
        meet(strategy)
        objects = cache(lambda: read_objects(source, recipe.train_split))  # seconds: once, and only where needed
        model = open_run(recipe, source, run, start, writes(strategy), objects)
        left = [stage for stage in TASKS if stage in stages and stage not in model.tasks]
        meet(strategy)
        if writes(strategy) and set(left) - {"classification"}:
            _report_coverage(model, recipe, objects())
        if left[:1] == ["localization"] and not recipe.through_features and not has_features(model, run):
            log.warning(
                "localization: the features that it is fitted on have learnt nothing yet: --stage classification,"
                "localization, or --from a run"
            )
        for stage in left:
            if stage == "classification" and model.network.background:
                raise ValueError(
                    f"expected '{run}' to be fitted for classification before detection: use another --run"
                )
            if stage == "detection" and not model.network.background:
                model = with_background(model)
            if stage == "classification" and len(model.labels) == 1 and "detection" in left:
                log.info("classification: one class, so there is nothing to tell apart: detection learns the features")
            else:
                _fit(stage, model, recipe, source, run, profile)
            calibration, tasks = None, (*model.tasks, stage)
            if "detection" in tasks and writes(strategy):
                calibration = calibrate(model, source, recipe.val_split, seed=recipe.seed)
            model = replace(model, tasks=tasks, calibration=calibration)
            if writes(strategy):
                run_folder.commit(run, config_of(model, recipe, source, run), model.save_weights)
        meet(strategy)
    return model


def _fit(stage: str, model: Model, recipe: Recipe, source: Source, run: Path, profile: bool) -> None:
    schedule, strategy = getattr(recipe, stage), tf.distribute.get_strategy()
    fitted = stage_model(stage, model.network, recipe)
    seed_stage(fitted, (recipe.seed, TASKS.index(stage)))
    checkpoints = Checkpoints(run / "checkpoints" / stage, fitted, schedule.epoch_steps, writes(strategy))
    done = checkpoints.resume()
    if done:
        log.info("%s: going on after step %d of %d", stage, done, schedule.steps)
    validation = None
    callbacks: list[keras.callbacks.Callback] = [FiniteLoss(stage, done), checkpoints]
    if stage != "detection" and recipe.val_split in source.splits:
        # A view of each image: of as many images as there are views.
        once = replace(recipe, views=replace(recipe.views, per_image=1))
        validation = spread(strategy, _batches(stage, model, once, source, recipe.val_split), schedule.batch)
    if writes(strategy):
        callbacks += stage_boards(stage, model, recipe, source, run / "logs" / stage, schedule.epoch_steps, profile)
    if writes(strategy) and not sys.stderr.isatty():
        callbacks.append(Report(lambda line: print(line, file=sys.stderr, flush=True), stage, schedule.epoch_count))
    with AskedToEnd(stage, checkpoints) as ending, _told_when_full(stage, schedule, strategy, run):
        for first, last, each in schedule.epochs_left(done):
            batches = _batches(stage, model, recipe, source, recipe.train_split, checkpoints.marks())
            fitted.prepare(batches.element_spec)
            fitted.fit(
                spread(strategy, batches, schedule.batch),
                epochs=last,
                initial_epoch=first,
                steps_per_epoch=each,
                validation_data=validation,
                validation_steps=VALIDATION_BATCHES if validation is not None else None,
                callbacks=[*callbacks, ending],
                shuffle=False,  # the pipeline does
                verbose=1 if writes(strategy) and sys.stderr.isatty() else 0,
            )


def _report_coverage(model: Model, recipe: Recipe, objects: Objects) -> None:
    """Log how many of the objects the pyramid covers, and what to do where they are few."""
    preset, options = model.network.preset, model.options
    found = measure_coverage(objects, preset, options.scale_sizes(preset), recipe.matching)
    for line in found.lines():
        log.info("%s", line)
    if found.found < ENOUGH:
        log.warning("fewer than %.0f%% of the objects are covered: %s", 100 * ENOUGH, remedy(recipe.scales))


@contextmanager
def _told_when_full(stage: str, schedule: Schedule, strategy: tf.distribute.Strategy, run: Path) -> Iterator[None]:
    """Say what to do where a batch does not fit the device, or a checkpoint the disk: of one error in TensorFlow."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        if any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
            raise OSError(
                f"expected room on the disk of '{run}'; it is full: make some, and the same command goes on"
            ) from error
        parts = more_parts(strategy, schedule.batch, schedule.accumulate)
        way = f"--set {stage}.accumulate={parts}, or a smaller {stage}.batch" if parts else "use a larger device"
        raise RuntimeError(
            f"expected a batch of {schedule.batch} to fit the device's memory; it does not: {way}"
        ) from error


def _batches(
    stage: str, model: Model, recipe: Recipe, source: Source, split: str, marks: Bookmarks | None = None
) -> tf.data.Dataset:
    """Give a stage's batches, from the step of `marks` on, noting there how far the data is read."""
    schedule, preset, seed = getattr(recipe, stage), model.network.preset, recipe.seed
    marks = marks or Bookmarks()
    data = pipeline.records(source, split, seed, marks.place)
    scales = model.options.scale_sizes(preset)
    drawing = pipeline.Drawing(preset, scales, recipe.matching, recipe.views, model.options.scale_fit)
    if stage == "classification" and recipe.views.plain:
        batches = crops.crop_batches(data, preset, recipe.views, schedule.batch, seed, marks)
    elif stage == "classification":
        batches = pipeline.classification_batches(data, drawing, schedule.batch, seed, marks)
    else:
        views = (data, drawing, schedule.batch, recipe.side, recipe.fine)
        batches = pipeline.spatial_batches(*views, seed, marks, voting_only=stage == "detection")
    if stage == "localization" and not recipe.through_features:
        batches = batches.map(lambda pixels, targets: (pixels, {"boxes": targets["boxes"]}))
    # Last, so that decoding and drawing run while a step does; a block, since its batches come all at once.
    return batches.prefetch(max(PREFETCHED, marks.batches))
