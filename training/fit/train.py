"""Fit a recipe, stage by stage, with `model.fit`; the same call resumes an interrupted run."""

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
from training.evaluation.calibration import calibrate
from training.fit.callbacks import EpochLines, FiniteLoss
from training.fit.stages import seed_stage
from training.fit.strategy import barrier, choose_strategy, is_chief, keep_freed_memory, more_parts, shard_batches
from training.fit.supply import Supply
from training.fit.tensorboard import stage_boards
from training.fit.transfer import with_background
from training.recipes import Recipe, Schedule
from training.run import folder as run_folder
from training.run.checkpoints import Checkpoints
from training.run.preflight import check, disk_space
from training.run.resume import config_of, finished, has_features, network_of, open_run
from training.run.signals import CheckpointOnSignal
from training.sources import Source
from training.tasks import TRAINED_TASKS
from training.views.batching import Bookmarks
from training.views.coverage import ENOUGH, Objects, measure_coverage, read_objects, remedy
from training.views.drawing import Drawing
from training.views.pipeline import training_batches

VALIDATION_BATCHES = 4

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

    Resuming: (1) a stage whose name is in the configuration's tasks is done and skipped; (2) a stage under way resumes
    from its last checkpoint and ends with the weights of an unbroken run (`Checkpoints`), whenever the process was
    killed; (3) the recipe must be the one that the run began with.

    Args:
        recipe: What to fit, and how.
        source: The data.
        run: The run's folder, made if missing; shared by all workers, if there are several, of which one writes.
        stages: Of `TASKS`.
        strategy: As `choose_strategy` gives it, which several workers have to call before anything else.
        start: A run whose weights a new run starts from (`training.fit.transfer`); one that is taken up has its own.
        profile: Trace a few steps of each stage for TensorBoard's profiler.

    Raises:
        ValueError: unknown stage, a recipe that does not suit the network or the data, or the folder holds a run of
            other settings, or one that is past the stage, or one that another process is training.
        OSError: the folder cannot be written in, or its disk has no space for the run.
        ImportError: pycocotools is not there, by which detection is validated.
        FloatingPointError: a loss or a weight that is not finite.
        RuntimeError: a batch does not fit the device.
    """
    unknown = [stage for stage in stages if stage not in TASKS]
    if unknown:
        raise ValueError(f"expected stages of {', '.join(TASKS)}; got '{unknown[0]}'")
    # 1. What would end the run later is said now.
    keep_freed_memory()
    strategy = strategy or choose_strategy()
    chief = is_chief(strategy)
    recipe, preset = recipe.sized(source), network_of(recipe, run)
    check(recipe, preset, source, stages, strategy)
    if start is not None:
        read_config(start)  # said before there is a folder
    keras.utils.set_random_seed(recipe.seed)

    with run_folder.held(run) if chief else nullcontext(), strategy.scope():
        # 2. Begin the run, or resume it: one process writes, and all read what it has written.
        if chief:
            run_folder.recover(run)
            if not set(stages) <= set(finished(run)):
                run_folder.require_disk_space(run, disk_space(recipe, preset, len(source.class_names)))
        barrier(strategy)
        objects = cache(lambda: read_objects(source, recipe.train_split))  # seconds: once, and only where needed
        model = open_run(recipe, source, run, start, chief, objects)
        left = [stage for stage in TASKS if stage in stages and stage not in model.tasks]
        barrier(strategy)
        if chief and set(left) - {"classification"}:
            _report_coverage(model, recipe, objects())
        if left[:1] == ["localization"] and not recipe.through_features and not has_features(model, run):
            log.warning(
                "localization: the features that it is fitted on have learnt nothing yet: --stage classification,"
                "localization, or --from a run"
            )

        # 3. Fit each stage that is left, and commit it.
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
            if "detection" in tasks and chief:
                calibration = calibrate(model, source, recipe.val_split, seed=recipe.seed)
            model = replace(model, tasks=tasks, calibration=calibration)
            if chief:
                run_folder.commit(run, config_of(model, recipe, source, run), model.save_weights)
        barrier(strategy)
    return model


def _fit(stage: str, model: Model, recipe: Recipe, source: Source, run: Path, profile: bool) -> None:
    """Fit one stage with `model.fit`, from its last checkpoint on."""
    schedule, strategy = getattr(recipe, stage), tf.distribute.get_strategy()
    chief = is_chief(strategy)
    # 1. The Keras model, its optimizer and its random numbers, as the last checkpoint has them.
    fitted = TRAINED_TASKS[stage].model(model.network, recipe)
    seed_stage(fitted, (recipe.seed, TASKS.index(stage)))
    checkpoints = Checkpoints(run / "checkpoints" / stage, fitted, schedule.epoch_steps, chief)
    done = checkpoints.resume()
    if done:
        log.info("%s: resuming after step %d of %d", stage, done, schedule.steps)

    # 2. Validation and callbacks.
    validation = None
    supply = Supply(source)
    callbacks: list[keras.callbacks.Callback] = [FiniteLoss(stage, done), checkpoints, supply]
    if stage != "detection" and recipe.val_split in source.splits:
        # A view of each image: of as many images as there are views.
        once = replace(recipe, views=replace(recipe.views, per_image=1))
        validation = shard_batches(strategy, _batches(stage, model, once, supply, recipe.val_split), schedule.batch)
    if chief:
        callbacks += stage_boards(stage, model, recipe, source, run / "logs" / stage, schedule.epoch_steps, profile)
    if chief and not sys.stderr.isatty():
        callbacks.append(EpochLines(lambda line: print(line, file=sys.stderr, flush=True), stage, schedule.epoch_count))

    # 3. The epochs that are left: the one under way, those of usual length, and a longer last one.
    with (
        _explain_exhaustion(stage, schedule, strategy, run),
        CheckpointOnSignal(stage, checkpoints, supply.stop) as on_signal,
        _keep_step_if_data_ends(supply, checkpoints, on_signal),
    ):
        for first, last, each in schedule.epochs_left(done):
            batches = _batches(stage, model, recipe, supply, recipe.train_split, checkpoints.bookmarks())
            fitted.fit(
                shard_batches(strategy, batches, schedule.batch),
                epochs=last,
                initial_epoch=first,
                steps_per_epoch=each,
                validation_data=validation,
                validation_steps=VALIDATION_BATCHES if validation is not None else None,
                callbacks=[*callbacks, on_signal],
                shuffle=False,  # the pipeline does
                verbose=1 if chief and sys.stderr.isatty() else 0,
            )


@contextmanager
def _keep_step_if_data_ends(supply: Supply, checkpoints: Checkpoints, on_signal: CheckpointOnSignal) -> Iterator[None]:
    """Write a checkpoint where the supply of data ends, and raise its reason, or obey the signal that ended it."""
    try:
        yield
    except tf.errors.OpError as error:
        if supply.problem is None:
            raise
        checkpoints.save()
        on_signal.end_if_asked()
        kept = f"step {checkpoints.step} is kept, and the same command resumes from there"
        raise OSError(f"{' '.join(str(supply.problem).split())}; {kept}") from error


def _report_coverage(model: Model, recipe: Recipe, objects: Objects) -> None:
    """Log how many of the objects the pyramid covers, and what to do where they are few."""
    preset, options = model.network.preset, model.options
    found = measure_coverage(objects, preset, options.scale_sizes(preset), recipe.matching)
    for line in found.lines():
        log.info("%s", line)
    if found.found < ENOUGH:
        log.warning("fewer than %.0f%% of the objects are covered: %s", 100 * ENOUGH, remedy(recipe.scales))


@contextmanager
def _explain_exhaustion(stage: str, schedule: Schedule, strategy: tf.distribute.Strategy, run: Path) -> Iterator[None]:
    """Raise an error that says what to do where the device's memory or the disk is full: one error in TensorFlow."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        if any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
            raise OSError(
                f"expected space on the disk of '{run}'; it is full: make some, and the same command resumes"
            ) from error
        parts = more_parts(strategy, schedule.batch, schedule.accumulate)
        way = f"--set {stage}.accumulate={parts}, or a smaller {stage}.batch" if parts else "use a larger device"
        raise RuntimeError(
            f"expected a batch of {schedule.batch} to fit the device's memory; it does not: {way}"
        ) from error


def _batches(
    stage: str, model: Model, recipe: Recipe, source: Source, split: str, bookmarks: Bookmarks | None = None
) -> tf.data.Dataset:
    """Return a stage's batches, from the step of `bookmarks` on, noting there how far the data is read."""
    preset, options = model.network.preset, model.options
    sizes = options.scale_sizes(preset)
    drawing = Drawing(preset, sizes, recipe.matching, recipe.views, recipe.side, recipe.fine, options.scale_fit)
    views = TRAINED_TASKS[stage].views(drawing, recipe)
    return training_batches(source, split, views, getattr(recipe, stage).batch, recipe.seed, bookmarks)
