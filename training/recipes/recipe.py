"""What a recipe is: data, network, and a schedule for each stage."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby, pairwise
from math import ceil, inf
from typing import TYPE_CHECKING

import numpy as np

from overfeat_tf.arguments import check_choice, check_range
from overfeat_tf.boxes import BOX_FORMS
from overfeat_tf.models.tasks import TASKS
from overfeat_tf.network.keras_backbone import KerasBackbone
from overfeat_tf.network.presets import PRESETS, Preset, get_preset
from overfeat_tf.network.pretrained import IMAGENET, backbone_preset, classifier_preset, read_averaged, read_backbone
from overfeat_tf.options import InferenceOptions
from training.fit.losses import BOX_LOSSES, NEGATIVES
from training.progress import progress
from training.sources.record import Source, count_images
from training.views.augmentation import ViewOptions
from training.views.coverage import Objects, Scales, choose_scales, parse_scales
from training.views.targets import Matching

if TYPE_CHECKING:
    import keras

DECAYS = ("decoupled", "l2")
OPTIMIZERS = {"sgd": 1, "adamw": 2}  # and how many numbers each keeps for a weight
SCHEDULES = ("step", "cosine")
CLASS_WEIGHTS = ("none", "balanced")
BATCH_NORMS = ("inference", "training")
MOST_WEIGHT = 10.0  # of a class, where classes are balanced
LEAST_STEPS = 200  # of a stage whose steps follow from the size of the set
SCALES = ("preset", "auto")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16", "auto")


@dataclass(frozen=True)
class Schedule:
    """How one stage is fitted: by default SGD with momentum, weight decay and a stepwise learning rate (3.1).

    Attributes:
        steps: Batches in all.
        batch: Images (views) in a global batch, over all devices.
        learning_rate: Initial learning rate.
        drops: Fractions of `steps` after which the learning rate is multiplied by `factor`.
        factor: Of the learning rate at each drop (3.1: 0.5).
        momentum: Of SGD (3.1: 0.6).
        weight_decay: How strongly weights are pulled to 0 (3.1: 1e-5); `decay` says how.
        clip: Largest norm of the gradient; small networks start unsteadily at high learning rates. None clips nothing
            (3.1).
        epochs: Into how many epochs the steps are divided: checkpoints and validations.
        drop_epochs: Epochs after which the learning rate is multiplied by `factor` (3.1), in place of `drops`.
        warm_up: Steps over which the learning rate rises from a tenth of `learning_rate`.
        backbone_multiplier: Factor on the learning rate of the backbone's layers; 0 freezes them, and spends no
            time on their gradients.
        passes: How often each image of the training split is shown, from which `steps` follow, at least `LEAST_STEPS`
            and at most `steps`; None takes `steps`.
        decay: "l2" adds weight_decay * w to the gradient of each kernel before momentum, as the L2 term of 3.1 does;
            "decoupled" takes learning_rate * weight_decay * w from each kernel beside the step.
        accumulate: Into how many parts each device's share of a batch is divided, where it does not fit; the step is
            that of the whole batch.
        optimizer: "sgd", or "adamw", for which `learning_rate` should be some twenty times smaller; `momentum` is
            then its first decay rate, and `weight_decay` is decoupled and leaves biases and normalisation alone.
        schedule: How the learning rate falls: "step", by `factor` after `drops` or `drop_epochs`; or "cosine", along
            half a cosine to a hundredth.
    """

    steps: int
    batch: int
    learning_rate: float
    drops: tuple[float, ...] = (0.6, 0.85)
    factor: float = 0.3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip: float | None = 3.0
    epochs: int = 5
    drop_epochs: tuple[float, ...] = ()
    decay: str = DECAYS[0]
    accumulate: int = 1
    warm_up: int = 0
    backbone_multiplier: float = 1.0
    passes: float | None = None
    optimizer: str = "sgd"
    schedule: str = SCHEDULES[0]

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.epochs) < 1:
            got = f"{self.steps}, {self.batch} and {self.epochs}"
            raise ValueError(f"expected at least one step, one image a batch and one epoch; got {got}")
        check_choice("decay", self.decay, DECAYS)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_range("learning_rate", self.learning_rate, self.learning_rate > 0, "more than 0")
        check_range("momentum", self.momentum, 0 <= self.momentum < 1, "from 0 to less than 1")
        check_range("weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more")
        check_range("clip", self.clip, self.clip is None or self.clip > 0, "None or more than 0")
        check_range("warm_up", self.warm_up, self.warm_up >= 0, "0 or more")
        check_range("backbone_multiplier", self.backbone_multiplier, self.backbone_multiplier >= 0, "0 or more")
        check_range("passes", self.passes, self.passes is None or self.passes > 0, "None or more than 0")
        check_range("factor", self.factor, self.factor > 0, "more than 0")
        rising = _rising(0, *self.drops, 1)
        check_range("drops", self.drops, rising, "rising fractions of the steps, more than 0 and less than 1")
        rising = _rising(0, *self.drop_epochs, self.epochs) or not self.drop_epochs
        check_range("drop_epochs", self.drop_epochs, rising, f"rising, more than 0 and less than {self.epochs} epochs")
        if self.accumulate < 1 or self.batch % self.accumulate:
            raise ValueError(f"expected accumulate to divide the batch of {self.batch}; got {self.accumulate}")

    def sized(self, images: int) -> "Schedule":
        """Return the schedule with the steps that `passes` over so many images take."""
        if self.passes is None:
            return self
        steps = min(max(round(self.passes * images / self.batch), LEAST_STEPS), self.steps)
        return replace(self, steps=steps, passes=None)

    @property
    def epoch_count(self) -> int:
        """Epochs that there are: `epochs`, or as many as there are steps."""
        return min(self.epochs, self.steps)

    @property
    def epoch_steps(self) -> int:
        """Steps in each epoch; the last one has besides what is left of `steps`."""
        return self.steps // self.epoch_count

    def epochs_left(self, done: int) -> Iterator[tuple[int, int, int]]:
        """Yield the epochs that are left after so many steps as (first, last + 1, steps in each), for `fit`."""
        final, each = self.epoch_count - 1, self.epoch_steps
        lengths = [each] * final + [self.steps - final * each]
        first = min(done // each, final)
        lengths[first] -= done - first * each
        for length, numbers in groupby(range(first, final + 1), lengths.__getitem__):
            alike = list(numbers)
            if length:
                yield alike[0], alike[-1] + 1, length

    @property
    def boundaries(self) -> list[int]:
        """The last step, counted from 0, before each drop of the learning rate: Keras drops it after its boundary."""
        if self.drop_epochs:
            return [round(epoch * self.epoch_steps) - 1 for epoch in self.drop_epochs]
        return [round(self.steps * drop) - 1 for drop in self.drops]


def _rising(*values: float) -> bool:
    return all(one < other for one, other in pairwise(values))


@dataclass(frozen=True)
class Recipe:
    """All that a run needs to know but its data's location.

    Attributes:
        name: What the command line calls it.
        data: Default SOURCE; None where the user must name one.
        preset: The network: a preset, or a backbone as `overfeat_tf.build` takes it.
        layer: Where a backbone is cut: the name of a layer, or a stride in pixels, of whose layers one is chosen
            (`pretrained.activation_at_stride`); 16 if None.
        classifier_channels, regressor_channels: Channels of each head's hidden layers; the network's own if None.
        averaged: Whether a backbone's last map is averaged over each window and classified by one linear layer, as
            Keras's own classifiers do: for classes alone, since a mean does not tell where in the window an object is.
        weights: What a backbone starts from: "imagenet", the path of a weights file, or None for fresh ones.
        frozen_to: How far a backbone is frozen throughout: the name of the last frozen layer, or the stride of the last
            frozen maps in pixels, which freezes nothing in a backbone that starts from random weights. None freezes
            nothing.
        batch_norm: Whether the backbone's batch normalisation stays as it is ("inference") or is fitted ("training").
        train_split, val_split: Splits to fit and to validate on.
        classification, localization, detection: The schedules of the three stages.
        stages: Those that are fitted unless others are asked for.
        scales: The pyramid that training and inference show: "preset", the network's own; "auto", chosen from the
            training split's boxes (`training.views.coverage`) and written into the run's configuration; or sizes in
            pixels, such as "117,165,229x325".
        side: Side of the views of the spatial stages, in pixels.
        fine: Whether the spatial stages take the last pooling at every offset (4.2: copies for every shift).
        matching: Which windows show an object.
        views: How views are drawn.
        per_class: Whether the regressor has a box for each class (PCR, 4.3) rather than one for all (SCR).
        box_form: What the regressor's four numbers are: "edges" (4.2), or "center_size", the centre and the logarithm
            of the size (6, iii).
        box_loss: What the regressor learns by: "l2" (4.2); "iou", "giou" or "giou_l1" (6, ii; `fit.losses.BoxLoss`),
            which are some ten times as large, as `box_weight` may have to undo.
        through_features: Whether the second stage's loss goes through the whole network (6, i) rather than stopping
            at the regressor; the classifier then learns along, so as to follow the features.
        context: Whether each scale also takes a lower-resolution one as input (5).
        negatives: How detection picks its negatives: "offending" or "random" (5).
        negatives_per_object: How many negatives an image gives for each of its windows that show an object.
        negatives_at_least: How many it gives at least, even without an object.
        box_weight: Weight of the box loss beside the classifier's wherever both are fitted: in the third stage,
            where the regressor follows the features, and in the second with `through_features`.
        inference: Options of validation and of the exported model.
        validation_images: How many images of the validation split, its first ones, are scored after each epoch of
            localization and detection; all of a smaller split. None scores as many as are scanned in the time that
            the epoch's steps take (`fit.plan.scored_images`).
        seed: Of weights, data order and augmentation.
        precision: What training computes in: "float32", or "mixed_bfloat16" or "mixed_float16" for devices that are
            faster in these; "auto" takes bfloat16 where a run begins on a machine on which a step is faster in it, and
            the run keeps to it. Weights, outputs and losses are float32 in any case.
        jit_compile: Whether XLA compiles the training step.
        ema: Decay of an exponential moving average of the weights, by which a stage is then validated and which it
            leaves, such as 0.999; it is smaller during the first steps. None averages nothing.
        patience: Epochs without a better validation after which a stage ends early; None runs all of them.
        class_weights: Factors on the classes' losses: "none"; "balanced", which weighs each class as if all were
            equally frequent, by 10 at most; or a number for each class, such as "1,1,4".
    """

    name: str
    data: str | None
    preset: str
    classification: Schedule
    localization: Schedule
    detection: Schedule
    side: int
    stages: tuple[str, ...] = TASKS
    scales: str = "preset"
    layer: str | None = None
    classifier_channels: tuple[int, ...] | None = None
    regressor_channels: tuple[int, ...] | None = None
    averaged: bool = False
    weights: str | None = IMAGENET
    frozen_to: str | None = None
    batch_norm: str = BATCH_NORMS[0]
    train_split: str = "train"
    val_split: str = "val"
    fine: bool = True
    matching: Matching = field(default_factory=Matching)
    views: ViewOptions = field(default_factory=ViewOptions)
    per_class: bool = False
    box_form: str = BOX_FORMS[0]
    box_loss: str = BOX_LOSSES[0]
    through_features: bool = False
    context: bool = False
    negatives: str = NEGATIVES[0]
    negatives_per_object: int = 3
    negatives_at_least: int = 8
    box_weight: float = 5.0
    inference: InferenceOptions = field(default_factory=InferenceOptions)
    validation_images: int | None = 100
    seed: int = 0
    precision: str = PRECISIONS[0]
    jit_compile: bool = False
    ema: float | None = None
    patience: int | None = None
    class_weights: str = CLASS_WEIGHTS[0]

    @property
    def network(self) -> Preset:
        """The description of the network.

        Raises:
            ValueError, OSError, ImportError: see `pretrained.read_backbone`.
        """
        if self.preset in PRESETS:
            preset = get_preset(self.preset)
        else:
            preset = (classifier_preset if self.averaged else backbone_preset)(self.backbone()[0])
        classifier, regressor = self.classifier_channels, self.regressor_channels
        return replace(
            preset,
            full=preset.full if classifier is None else classifier,
            regressor=preset.regressor if regressor is None else regressor,
        )

    def check_side(self, preset: Preset) -> None:
        """Raise ValueError unless the views of the spatial stages hold the network's windows."""
        least = preset.smallest_input if self.fine else preset.window
        if self.side < least:
            raise ValueError(f"expected side to be at least {least} pixels for '{preset.name}'; got {self.side}")

    def backbone(self) -> "tuple[KerasBackbone, keras.Model]":
        """Read the backbone, if the network is not a preset, and its weights."""
        return _read_backbone(self.preset, self.layer, self.weights, self.averaged)

    def sized(self, source: Source) -> "Recipe":
        """Return the recipe with the steps and the class weights that its training split asks for.

        Raises:
            ValueError: there is not one weight for each class.
        """
        stages = {name: getattr(self, name) for name in TASKS}
        most = max((s.steps * s.batch / s.passes for s in stages.values() if s.passes is not None), default=0)
        images = count_images(source, self.train_split, ceil(most)) if most else 0
        sized = replace(self, **{name: schedule.sized(images) for name, schedule in stages.items()})
        if self.class_weights == "balanced":
            return replace(sized, class_weights=_balanced(source, self.train_split))
        weights, classes = sized.weights_of_classes(), len(source.class_names)
        if weights is not None and len(weights) != classes:
            raise ValueError(
                f"expected class_weights to have a number for each of {classes} classes; got {len(weights)}"
            )
        return sized

    def weights_of_classes(self) -> tuple[float, ...] | None:
        """Return the factors on the losses of a sized recipe's classes; None where all are 1."""
        return None if self.class_weights in CLASS_WEIGHTS else tuple(map(float, self.class_weights.split(",")))

    def scales_for(self, preset: Preset, objects: Objects) -> Scales:
        """Return the (height, width) of the scales that this recipe shows to a network and its training objects."""
        if self.scales == "auto":
            return choose_scales(objects, preset, self.matching)
        return self.inference.scale_sizes(preset) if self.scales == "preset" else parse_scales(self.scales)

    def __post_init__(self) -> None:
        # Said here, before two stages have been fitted.
        if self.preset in PRESETS:
            for name, kept in (("layer", (None,)), ("averaged", (False,)), ("weights", (IMAGENET, None))):
                if (value := getattr(self, name)) not in kept:
                    raise ValueError(
                        f"expected a backbone with {name}={value}; '{self.preset}' is a preset: leave it out"
                    )
        check_choice("negatives", self.negatives, NEGATIVES)
        check_choice("batch_norm", self.batch_norm, BATCH_NORMS)
        check_choice("box_form", self.box_form, BOX_FORMS)
        check_choice("box_loss", self.box_loss, BOX_LOSSES)
        check_choice("precision", self.precision, PRECISIONS)
        if self.scales not in SCALES:
            parse_scales(self.scales)
        if self.scales != "preset" and self.inference.scales is not None:
            got = f"scales={self.scales} with inference.scales={self.inference.scales}"
            raise ValueError(f"expected inference.scales only with scales=preset, whose numbers they are; got {got}")
        check_range("seed", self.seed, 0 <= self.seed < 2**32, "from 0 to 2**32 - 1")
        check_range("ema", self.ema, self.ema is None or 0 < self.ema < 1, "None, or between 0 and 1")
        check_range("patience", self.patience, self.patience is None or self.patience >= 1, "None, or 1 or more")
        try:
            positive = all(0 < weight < inf for weight in self.weights_of_classes() or ())
        except ValueError:
            positive = False
        check_range("class_weights", self.class_weights, positive, "none, balanced, or numbers above 0 such as 1,1,4")
        counted = self.validation_images is None or self.validation_images >= 1
        check_range("validation_images", self.validation_images, counted, "None, or 1 or more")
        for name in ("classifier_channels", "regressor_channels"):
            channels = getattr(self, name)
            positive = channels is None or all(each >= 1 for each in channels)
            check_range(name, channels, positive, "None, or numbers from 1")
        check_range("negatives_per_object", self.negatives_per_object, self.negatives_per_object >= 0, "0 or more")
        check_range("negatives_at_least", self.negatives_at_least, self.negatives_at_least >= 1, "1 or more")
        check_range("box_weight", self.box_weight, self.box_weight >= 0, "0 or more")


def _balanced(source: Source, split: str) -> str:
    """Return a weight for each class as if all were equally frequent: the mean over all objects is about 1.

    A class is weighed by `MOST_WEIGHT` at most: else the only object of a class would outweigh the rest of its batch.
    """
    counts = np.zeros(len(source.class_names))
    for record in progress(source.records(split), "count the objects of each class"):  # of a large set for minutes
        counts += np.bincount(record.labels[~record.crowd], minlength=len(counts))
    weights = np.minimum(counts.sum() / np.maximum(counts * (counts > 0).sum(), 1), MOST_WEIGHT)
    return ",".join(f"{weight:.4g}" for weight in np.where(counts > 0, weights, 1.0))


@lru_cache(maxsize=1)
def _read_backbone(
    name: str, layer: str | None, weights: str | None, averaged: bool
) -> "tuple[KerasBackbone, keras.Model]":
    return (read_averaged if averaged else read_backbone)(name, layer, weights)
