"""The three tasks, a row each: how its stage is fitted and what it is shown; what scores it and what a report draws."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from overfeat_tf.network.convnet import Network
from overfeat_tf.network.presets import Preset
from overfeat_tf.options import InferenceOptions
from training.evaluation.average_precision import CocoDetection, IlsvrcDetection, VocDetection
from training.evaluation.calibration import Reliability
from training.evaluation.metrics import IlsvrcErrors, Metric
from training.evaluation.recall import DetectionRecall
from training.evaluation.reports.curves import PrecisionRecallCurves, ScoreCurves
from training.evaluation.reports.mistakes import (
    ClassConfusion,
    DetectionConfusion,
    FalsePositives,
    Misses,
    WrongClasses,
    WrongPlaces,
)
from training.evaluation.reports.report import Observer
from training.fit.stages import classification_model, detection_model, localization_model
from training.fit.train_step import StageModel
from training.recipes import Recipe
from training.run.checkpoints import Monitor
from training.views.drawing import Drawing, Views, object_windows, plain_crops, window_maps


@dataclass(frozen=True)
class TrainedTask:
    """A task: the stage that learns it, and the protocol that scores it.

    Attributes:
        model: Builds and compiles the Keras model that the stage fits; it shares the network's variables.
        views: Gives what the stage is shown of a record.
        monitor: What its best epoch is chosen by.
        metrics, observers: Made from class names and display threshold.
    """

    model: Callable[[Network, Recipe], StageModel]
    views: Callable[[Drawing, Recipe], Views]
    monitor: Monitor
    metrics: tuple[Callable[[Sequence[str], float | None], Metric], ...]
    observers: tuple[Callable[[Sequence[str], float | None], Observer], ...]


TRAINED_TASKS: dict[str, TrainedTask] = {
    "classification": TrainedTask(
        model=classification_model,
        views=lambda drawing, recipe: plain_crops(drawing) if recipe.views.plain else object_windows(drawing),
        monitor=Monitor("val_top1"),
        metrics=(lambda *_: IlsvrcErrors("top"),),
        observers=(ClassConfusion, WrongClasses),
    ),
    "localization": TrainedTask(
        model=localization_model,
        views=lambda drawing, recipe: window_maps(drawing, scores=recipe.through_features),
        monitor=Monitor("val_localization1_error", mode="min"),
        metrics=(lambda *_: IlsvrcErrors("localization"),),
        observers=(WrongPlaces,),
    ),
    "detection": TrainedTask(
        model=detection_model,
        views=lambda drawing, _: window_maps(drawing, voting_only=True),
        monitor=Monitor("val_map"),
        metrics=(
            lambda names, _: CocoDetection(names),
            lambda names, _: VocDetection(names),
            lambda names, _: IlsvrcDetection(names),
            lambda _, threshold: DetectionRecall(threshold),
            lambda *_: Reliability(),
        ),
        observers=(PrecisionRecallCurves, ScoreCurves, DetectionConfusion, FalsePositives, Misses),
    ),
}


def stage_views(stage: str, preset: Preset, recipe: Recipe, options: InferenceOptions) -> Views:
    """Return what a stage is shown of a record, at the scales that a network and its options scan."""
    sizes = options.scale_sizes(preset)
    drawing = Drawing(preset, sizes, recipe.matching, recipe.views, recipe.side, recipe.fine, options.scale_fit)
    return TRAINED_TASKS[stage].views(drawing, recipe)
