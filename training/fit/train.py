"""Fit a recipe, stage by stage, with `model.fit`; the same call resumes an interrupted run."""

import errno
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import keras
import tensorflow as tf
from tqdm import tqdm

from overfeat_tf.arguments import suggest
from overfeat_tf.models.loading import read_config
from overfeat_tf.models.model import CONFIG, LAST, TASKS, Model
from overfeat_tf.network.presets import Preset
from training.evaluation.calibration import calibrate
from training.evaluation.inspection import open_faultless
from training.fit.callbacks import EMA, EpochLines, FiniteLoss, Results, StageBar, StageCallbacks
from training.fit.plan import Plan, make_plan, report_data, scored_images
from training.fit.stages import seed_stage
from training.fit.strategy import (
    barrier,
    choose_strategy,
    is_chief,
    keep_freed_memory,
    more_parts,
    shard_batches,
    worker_count,
)
from training.fit.supply import Supply, stage_batches, validation_data
from training.fit.tensorboard import stage_boards, write_settings
from training.fit.transfer import with_background
from training.progress import log_lines
from training.recipes import Recipe, Schedule, get_recipe
from training.run import folder as run_folder
from training.run.checkpoints import BestWeights, Checkpoints, last_step
from training.run.preflight import check, disk_space
from training.run.resume import (
    check_openable,
    config_of,
    continued,
    finished,
    has_features,
    network_of,
    open_run,
    with_precision,
)
from training.run.signals import CheckpointOnSignal
from training.sources import open_data
from training.sources.dataset import Data
from training.sources.record import Source
from training.sources.splits import settle, store
from training.tasks import TRAINED_TASKS
from training.views.coverage import Objects, measure_coverage, read_objects
from training.views.data_service import DataService, StoredSource

log = logging.getLogger(__name__)


class Trained(NamedTuple):
    """What training gives: `model, history = train(...)`.

    Attributes:
        model: The trained model, as `overfeat_tf.load` returns it.
        history: For each stage that was fitted, the figures of its epochs by their names, as `fit` returns them:
            `history["detection"]["loss"]` is a list. A stage that was resumed has the epochs since.
    """

    model: Model
    history: dict[str, dict[str, list[float]]]


@log_lines()
def train(
    recipe: Recipe | str,
    data: Data | None = None,
    run: str | Path | None = None,
    stages: str | Sequence[str] | None = None,
    strategy: tf.distribute.Strategy | None = None,
    start: str | Path | None = None,
    profile: bool = False,
    *,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    class_names: Sequence[str] | None = None,
    strict: bool = False,
    data_service: str | None = None,
) -> Trained:
    """Fit the stages in their order, and leave configuration, checkpoints, logs and weights in the run's folder.

    `overfeat train` calls this. The same call resumes a run: (1) a stage whose name is in the configuration's tasks is
    done and skipped; (2) a stage under way resumes from its last checkpoint and ends with the weights of an unbroken
    run, whenever the process was killed; (3) the recipe must be the one that the run began with.

    Args:
        recipe: What to fit, and how: a recipe's name, or a `Recipe`. `dataclasses.replace` changes parts of one.
        data: A SOURCE such as "voc:DIR", what `datasets.open` returns, or records as a `tf.data.Dataset` or a
            dictionary of such by split (`training.sources.dataset`); the recipe's own data if left out.
        run: The run's folder, made if missing; `runs/` and the recipe's name if left out. Several workers share it, and
            one of them writes.
        stages: Of classification, localization, detection, one or several; the recipe's if left out.
        strategy: As `choose_strategy` gives it, which several workers have to call before anything else.
        start: A run whose weights a new run starts from (`training.fit.transfer`); a run that resumes has its own.
        profile: Trace a few steps of each stage for TensorBoard's profiler.
        callbacks: Keras callbacks for `fit`, the same for each stage, whose name is `callback.model.name`. One that
            sets `model.stop_training` ends its stage. Their own state begins anew when a run resumes.
        class_names: Of data that comes as tf.data.
        strict: Check all of the data first, and stop if any of it can't be used; of data that is not open yet.
        data_service: The dispatcher of a tf.data service, "host:port", whose workers then decode and draw. They read a
            copy of the images in `run`, which has to be on a file system that they share. The weights are those of a
            run without it.

    Raises:
        ValueError: unknown recipe, data or stage, a recipe that does not suit the network or the data, or the folder
            holds a run of other settings, or one that is past the stage, or one that another process is training.
        OSError: the folder cannot be written in, its disk has no space for the run, or no data service answers.
        ImportError: pycocotools is not there, by which detection is validated.
        FloatingPointError: a loss or a weight that is not finite.
        RuntimeError: a batch does not fit the device.
    """
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    stages = (stages,) if isinstance(stages, str) else recipe.stages if stages is None else stages
    unknown = [stage for stage in stages if stage not in TASKS]
    if unknown or not stages:
        got = f"'{unknown[0]}'{suggest(unknown[0], TASKS)}" if unknown else "none"
        raise ValueError(f"expected stages of {', '.join(TASKS)}; got {got}")
    # 1. Refuse now what would end the run later.
    keep_freed_memory()
    data = recipe.data if data is None else data
    if data is None:
        raise ValueError(f"expected --data SOURCE: the recipe '{recipe.name}' has no data of its own")
    strategy = strategy or choose_strategy()
    chief = is_chief(strategy)
    checked = (recipe.train_split, recipe.val_split)
    run, start = Path("runs", recipe.name) if run is None else Path(run), None if start is None else Path(start)
    if isinstance(data, str):
        check_openable(data, run)
    source = open_faultless(data, class_names, checked) if strict else open_data(data, class_names)
    source = settle(source, run, recipe.val_split)
    recipe, preset = recipe.sized(source), network_of(recipe, run)
    check(recipe, preset, source, stages, strategy)
    service = None
    if data_service is not None:
        service = DataService(data_service, StoredSource(source, recipe.train_split, run / run_folder.RECORDS))
        service.require()
    if start is not None and not (run / CONFIG).is_file():
        read_config(start)  # refused before there is a folder
    keras.utils.set_random_seed(recipe.seed)

    with run_folder.held(run) if chief else nullcontext(), strategy.scope():
        # 2. Begin the run, or resume it: one process writes, and all read what it has written.
        if chief:
            run_folder.recover(run)
            store(source, run)
            held = {*stages, *finished(run)}
            if held != set(finished(run)):
                run_folder.require_disk_space(run, disk_space(recipe, preset, len(source.class_names), held))
            if service is not None:
                service.source.write()
        barrier(strategy)
        objects = cache(lambda: read_objects(source, recipe.train_split))  # seconds: once, and only where needed
        model = open_run(recipe, source, run, stages, start, chief, objects)
        done = set(model.tasks) - {continued(run)}
        left = [stage for stage in TASKS if stage in stages and stage not in done]
        barrier(strategy)
        alone = len(model.labels) == 1 and "detection" in left  # with no other class to be told from
        # Until detection tells a single class from the background, all windows vote alike, and any box may win.
        answered = {"detection"} if alone else {"localization", "detection"}
        scales = model.options.scale_sizes(model.network.preset)
        scored = {stage: scored_images(stage, recipe, scales) for stage in left if stage in answered}
        if chief and left:
            report_data(source, recipe, scored, strategy)
        if chief and set(left) - {"classification"}:
            _report_coverage(preset, model, recipe, objects())
        if left[:1] == ["localization"] and not recipe.through_features and not has_features(model, run):
            log.warning(
                "localization: the features that it is fitted on have learnt nothing yet: --stage classification,"
                "localization, or --from a run"
            )

        # 3. Fit each stage that is left, and commit it.
        history = {}
        idle = "classification" if alone else None
        saved = {stage: last_step(run / "checkpoints" / stage) or 0 for stage in left if stage != idle}
        steps = {stage: getattr(recipe, stage).steps - step for stage, step in saved.items()}
        measure = chief and bool(left) and sys.stderr.isatty()
        plan = replace(make_plan(model.network, recipe, steps, measure), scored=scored)
        if chief and left:
            for line in plan.lines(recipe):
                log.info("%s", line)
            write_settings(run, recipe, stages)
        fitted_recipe = with_precision(recipe, model.network, run, chief) if left else recipe
        for stage in left:
            # Layers that the stage adds are drawn alike, whether the process has drawn those before or resumes.
            keras.utils.set_random_seed((recipe.seed + 1 + TASKS.index(stage)) % 2**32)
            if stage == "classification" and model.network.background:
                raise ValueError(
                    f"expected '{run}' to be fitted for classification before detection: use another --run"
                )
            if stage == "detection" and not model.network.background:
                model = with_background(model)
            if stage == idle:
                log.info("classification: one class, so there is nothing to tell apart: detection learns the features")
                kept: dict = {}
            else:
                history[stage], kept = _fit(stage, model, fitted_recipe, source, run, profile, callbacks, plan, service)
            model = replace(model, tasks=tuple(dict.fromkeys((*model.tasks, stage))), calibration=None)
            if "detection" in model.tasks and chief:
                model = replace(model, calibration=calibrate(model, source, recipe.val_split, seed=recipe.seed))
            if chief:
                config = config_of(model, recipe, source, run, stages, kept=kept)
                run_folder.commit(run, config, model.save_weights)
        barrier(strategy)
    return Trained(model, history)


def _fit(
    stage: str,
    model: Model,
    recipe: Recipe,
    source: Source,
    run: Path,
    profile: bool,
    others: Sequence[keras.callbacks.Callback],
    plan: Plan,
    service: DataService | None,
) -> tuple[dict[str, list[float]], dict]:
    """Fit one stage with `model.fit`, from its last checkpoint on, and leave the model with its best weights.

    Returns:
        The figures of its epochs, and by the stage which weights were kept, for the run's configuration.
    """
    schedule, strategy = getattr(recipe, stage), tf.distribute.get_strategy()
    chief = is_chief(strategy)
    # 1. The Keras model, its optimizer and its random numbers, as the last checkpoint has them.
    fitted = TRAINED_TASKS[stage].model(model.network, recipe)
    fitted.name = stage
    seed_stage(fitted, (recipe.seed, TASKS.index(stage)))
    ema = EMA(fitted, model.network, recipe.ema) if recipe.ema is not None else None
    folder, each = run / "checkpoints" / stage, schedule.epoch_steps
    checkpoints = Checkpoints(folder, fitted, schedule, chief, ema.variables if ema else ())
    done = checkpoints.resume()
    trained = replace(model, tasks=tuple(dict.fromkeys((*model.tasks, stage))))
    applied = ema.applied if ema else nullcontext
    monitor = TRAINED_TASKS[stage].monitor
    best = BestWeights(folder, monitor, trained.save_weights, checkpoints, each, recipe.patience, applied, chief)
    if done:
        log.info("%s: resuming after step %d of %d", stage, done, schedule.steps)

    # 2. Validation and callbacks.
    supply = Supply(service.source if service is not None else source)
    callbacks: list[keras.callbacks.Callback] = [FiniteLoss(stage, done), *([ema] if ema else [])]
    validation, count = validation_data(stage, model, recipe, source, supply)
    if chief:
        images = plan.scored.get(stage, 0)
        callbacks += stage_boards(stage, trained, recipe, source, images, run / "logs" / stage, each, applied, profile)
        callbacks.append(Results(run, stage, checkpoints))
    callbacks += [best, checkpoints]
    bar: AbstractContextManager = nullcontext()
    if chief and sys.stderr.isatty():
        shown_bar = StageBar(plan, stage, done, schedule.steps, schedule.epoch_count)
        above_the_bar = partial(tqdm.write, file=sys.stderr)
        callbacks += [EpochLines(above_the_bar, stage, schedule.epoch_count), shown_bar]
        bar = closing(shown_bar)
    elif chief:
        callbacks.append(EpochLines(log.info, stage, schedule.epoch_count))
    callbacks += others
    on_signal = CheckpointOnSignal(stage, checkpoints, supply.stop)
    hooks = StageCallbacks([*callbacks, on_signal], fitted, schedule.epoch_count, each)

    # 3. The epochs that are left: the one under way, those of usual length, and a longer last one.
    with (
        bar,
        _explain_failure(stage, schedule, strategy, run),
        on_signal,
        _keep_step_if_data_ends(supply, checkpoints, on_signal),
    ):
        hooks.begin()
        for first, last, steps in schedule.epochs_left(done):
            if best.exhausted():
                break
            marks = checkpoints.bookmarks()
            batches = partial(
                stage_batches, stage, model, recipe, supply, recipe.train_split, bookmarks=marks, service=service
            )
            hooks.set_params({**hooks.params, "steps": steps})
            fitted.fit(
                shard_batches(strategy, batches, schedule.batch),
                epochs=last,
                initial_epoch=first,
                steps_per_epoch=steps,
                validation_data=validation,
                validation_steps=count,
                callbacks=hooks,
                shuffle=False,  # the pipeline does
                verbose=0,
            )
            if fitted.stop_training:
                break
        hooks.end()

    # 4. The best weights, with those of the last step beside them.
    if ema is not None:
        ema.apply()
    barrier(strategy)
    judged = best.read()
    if judged is not None and judged["best"]["step"] != checkpoints.step:
        if chief:
            trained.save_weights(run / run_folder.NEW_WEIGHTS / LAST)
        trained.load_weights(best.weights(judged["best"]))
        log.info("%s: %s is best after epoch %d: its weights are kept", stage, monitor.name, judged["best"]["epoch"])
    return hooks.figures, {stage: {"step": checkpoints.step, "ema": recipe.ema, **(judged or {})}}


@contextmanager
def _keep_step_if_data_ends(supply: Supply, checkpoints: Checkpoints, on_signal: CheckpointOnSignal) -> Iterator[None]:
    """Write a checkpoint where the supply of data ends, and raise its reason, or obey the signal that ended it."""
    try:
        yield
    except tf.errors.OpError as error:
        if supply.problem is None:
            raise
        kept = "the same command resumes from the last checkpoint"
        if not checkpoints.at_epoch_end:  # else the epoch is not validated yet, or has a checkpoint
            checkpoints.save()
            kept = f"step {checkpoints.step} is kept, and the same command resumes from there"
        on_signal.end_if_asked()
        raise OSError(f"{' '.join(str(supply.problem).split())}; {kept}") from error


def _report_coverage(preset: Preset, model: Model, recipe: Recipe, objects: Objects) -> None:
    """Log how many of the objects the pyramid covers, what it costs, and what to do where they are few.

    Args:
        preset: The network as the run found it. One that begins has its own scales, which the cost is compared with;
            one that resumes has those that were chosen, and their cost is not logged again.
        model: What is fitted, with the chosen scales.
        recipe, objects: What was chosen from what.
    """
    found = measure_coverage(objects, preset, model.options.scale_sizes(model.network.preset), recipe.matching)
    if not found.objects:
        return
    for line in (*found.lines(), *found.cost_remark()):
        log.info("%s", line)
    for line in found.warning(recipe.scales):
        log.warning("%s", line)


@contextmanager
def _explain_failure(stage: str, schedule: Schedule, strategy: tf.distribute.Strategy, run: Path) -> Iterator[None]:
    """Raise an error that says what to do where the device's memory or the disk is full, or another worker is gone."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        if worker_count(strategy) == 1:
            raise
        raise RuntimeError(
            "expected all workers to go on; one has ended: the same command on each of them resumes from the last "
            "checkpoint"
        ) from error
    except tf.errors.ResourceExhaustedError as error:
        if any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
            raise OSError(
                f"expected space on the disk of '{run}'; it is full: make some, and the same command resumes"
            ) from error
        parts = more_parts(strategy, schedule.batch, schedule.accumulate)
        way = "use a larger device"
        if parts:
            way = f"--set {stage}.accumulate={parts}, or a smaller {stage}.batch, with another --run"
        raise RuntimeError(
            f"expected a batch of {schedule.batch} to fit the device's memory; it does not: {way}"
        ) from error
