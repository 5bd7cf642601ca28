"""Named recipes: data + network + schedule, each with its command, time and result."""

import difflib
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import UnionType
from typing import Any, get_args, get_origin

from overfeat_tf.boxes import BOX_FORMS
from overfeat_tf.options import InferenceOptions
from training.losses import BOX_LOSSES, NEGATIVES, check_choice
from training.pipeline import ViewOptions
from training.targets import Matching

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclass(frozen=True)
class Schedule:
    """How one stage is fitted: SGD with momentum, weight decay and a stepwise learning rate (3.1).

    Attributes:
        steps: Batches in all.
        batch: Images (views) in a global batch, over all devices.
        rate: Initial learning rate.
        drops: Fractions of `steps` after which the rate is multiplied by `factor`.
        momentum, weight_decay: As in 3.1.
        clip: Largest norm of the gradient; small networks on high rates start unsteadily.
        epochs: Into how many epochs the steps are divided: checkpoints and validations.
        accumulate: Into how many parts each device's share of a batch is divided, where it does not fit; the step is
            that of the whole batch.
    """

    steps: int
    batch: int
    rate: float
    drops: tuple[float, ...] = (0.6, 0.85)
    factor: float = 0.3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip: float = 3.0
    epochs: int = 5
    accumulate: int = 1

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.epochs) < 1:
            got = f"{self.steps}, {self.batch} and {self.epochs}"
            raise ValueError(f"expected at least one step, one image a batch and one epoch; got {got}")
        if self.accumulate < 1 or self.batch % self.accumulate:
            raise ValueError(f"expected accumulate to divide the batch of {self.batch}; got {self.accumulate}")


@dataclass(frozen=True)
class Recipe:
    """All that a run needs to know but its data's location.

    Attributes:
        name: What the command line calls it.
        data: Default SOURCE; None where the user must name one.
        preset: The network.
        train_split, val_split: Splits to fit and to validate on.
        classification, localization, detection: The schedules of the three stages.
        side: Side of the views of the spatial stages, in pixels.
        fine: Whether the spatial stages take the last pooling at every offset (4.2: copies for every shift).
        matching: Which windows show an object.
        views: How views are drawn.
        per_class: Whether the regressor has a box for each class (PCR, 4.3) rather than one for all (SCR).
        box_form: What the regressor's four numbers are: "edges" (4.2), or "centre_size", the centre and the logarithm
            of the size (6, iii).
        box_loss: What the regressor learns by: "l2" (4.2), "iou" or "giou" (6, ii); the latter two are some ten
            times as large, which `box_weight` may have to undo.
        through_features: Whether the second stage's loss goes through the whole network (6, i) rather than stopping
            at the regressor; the classifier then learns along, so as to follow the features.
        context: Whether each scale also takes a lower-resolution one as input (5).
        negatives: How detection picks its negatives: "offending" or "random" (5).
        box_weight: Weight of the box loss beside the classifier's wherever both are fitted: in the third stage,
            where the regressor follows the features, and in the second with `through_features`.
        inference: Options of validation and of the exported model.
        validation_images: How many images of the validation split are scored after each epoch of detection.
        seed: Of weights, data order and augmentation.
        precision: What training computes in: "float32", or "mixed_bfloat16" or "mixed_float16" for devices that are
            faster in these; weights, outputs and losses are float32 in any case.
        jit_compile: Whether XLA compiles the training step.
    """

    name: str
    data: str | None
    preset: str
    classification: Schedule
    localization: Schedule
    detection: Schedule
    side: int
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
    box_weight: float = 5.0
    inference: InferenceOptions = field(default_factory=InferenceOptions)
    validation_images: int = 40
    seed: int = 0
    precision: str = PRECISIONS[0]
    jit_compile: bool = False

    def __post_init__(self) -> None:
        # Said here, before two stages have been fitted.
        check_choice("negatives", self.negatives, NEGATIVES)
        check_choice("box_form", self.box_form, BOX_FORMS)
        check_choice("box_loss", self.box_loss, BOX_LOSSES)
        check_choice("precision", self.precision, PRECISIONS)


def digits() -> Recipe:
    """Train `tiny` on the digit scenes.

    overfeat train digits --run runs/digits

    Four minutes on two cores; mAP at IoU 0.5 of 0.90 on the first 200 test scenes (0.57 over 0.5:0.95).
    """
    return Recipe(
        name="digits",
        data="digits",
        preset="tiny",
        classification=Schedule(steps=540, batch=128, rate=0.05, epochs=3),
        localization=Schedule(steps=60, batch=64, rate=0.05, epochs=1),
        detection=Schedule(steps=640, batch=64, rate=0.05, epochs=4),
        side=68,
        fine=False,  # views fall at random offsets as it is: more views for the same work
        matching=Matching(sizes=(0.48, 0.92)),
        views=ViewOptions(per_image=8, mirror=False, object_share=0.7, colour=0.35),
        inference=InferenceOptions(min_score=0.2, merge_threshold=0.4),
    )


def voc() -> Recipe:
    """Train `small` on a Pascal VOC folder of a few hundred photographs.

    overfeat train voc --data voc:DIR --run runs/NAME

    25 CPU minutes; on 290 photographs of playing cards, 6 classes, mAP at IoU 0.5 of 0.79 on 73 others (0.50 over
    0.5:0.95; a box that never moves 0.02).
    """
    return Recipe(
        name="voc",
        data=None,
        preset="small",
        classification=Schedule(steps=2000, batch=64, rate=0.03, epochs=5),
        localization=Schedule(steps=150, batch=32, rate=0.03, epochs=1),
        detection=Schedule(steps=1400, batch=32, rate=0.03, epochs=7),
        side=157,
        fine=False,
        views=ViewOptions(mirror=False, object_share=0.7, stretch=0.25, colour=0.3),
        inference=InferenceOptions(min_score=0.3, merge_threshold=0.4),
    )


RECIPES = {"digits": digits, "voc": voc}


def get_recipe(name: str) -> Recipe:
    """Return the recipe of that name.

    Raises:
        ValueError: no such recipe; the message names the nearest one.
    """
    if name not in RECIPES:
        raise ValueError(f"expected a recipe, one of {', '.join(RECIPES)}; got '{name}'{_nearest(name, RECIPES)}")
    return RECIPES[name]()


def override(recipe: Recipe, settings: list[str]) -> Recipe:
    """Change a recipe by "key=value" settings, a dot leading inside: "detection.steps=2000".

    Raises:
        ValueError: no such key (the message names the nearest), or a value of another kind.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"expected key=value; got '{setting}'")
        recipe = _changed(recipe, key.strip(), key.strip().split("."), text.strip())
    return recipe


def _changed(part: Any, key: str, path: list[str], text: str) -> Any:
    kinds = {f.name: f.type for f in fields(part)}
    if path[0] not in kinds:
        raise ValueError(f"expected a key of the recipe; got '{key}'{_nearest(path[0], kinds)}; there are {[*kinds]}")
    old = getattr(part, path[0])
    if is_dataclass(old):
        if len(path) == 1:
            raise ValueError(f"expected '{key}.' and one of {[f.name for f in fields(old)]}; got '{key}'")
        return replace(part, **{path[0]: _changed(old, key, path[1:], text)})
    if len(path) > 1:
        raise ValueError(f"expected '{path[0]}' to end the key; got '{key}'")
    return replace(part, **{path[0]: _value(key, kinds[path[0]], text, old)})


def _value(key: str, kind: Any, text: str, old: Any) -> Any:
    try:
        return _read(kind, text)
    except ValueError:
        named = kind.__name__ if isinstance(kind, type) else kind
        raise ValueError(f"expected {key} to be of type {named}, like {old!r}; got '{text}'") from None


def _read(kind: Any, text: str) -> Any:
    """Read a value of the type that a field is annotated with; ValueError where it is of another."""
    if isinstance(kind, UnionType):  # with None
        return None if text == "None" else _read(get_args(kind)[0], text)
    if get_origin(kind) is tuple:
        parts = [part.strip() for part in text.strip("()[]").split(",") if part.strip()]
        kinds = get_args(kind)
        kinds = kinds[:1] * len(parts) if kinds[-1] is Ellipsis else kinds
        return tuple(_read(*pair) for pair in zip(kinds, parts, strict=True))
    if kind is bool and text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true" if kind is bool else kind(text)


def _nearest(name: str, known) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
