"""The paper's choices with their alternatives, for each kind of data that `overfeat benchmark ladder` knows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# IoU losses are larger than L2. These keep the weighted box loss, and the steps of a stage with only that loss, about
# as large as before: see `Recipe.box_loss`.
IOU_BOX_WEIGHT = 0.5
IOU_RATE = "localization.learning_rate=0.003"
IOUS = (0.3, 0.5)  # of non-maximum suppression


@dataclass(frozen=True)
class Variant:
    """One variant of a choice.

    Attributes:
        settings: Training settings, as for `overfeat train --set`. Without any, all choices share one run per seed.
        from_scratch: Train the first stage with these settings too, instead of sharing it between variants.
        changes: Inference options.
        suppress: Combine boxes by non-maximum suppression at this IoU instead of merging.
        committee: Average the votes of the runs of all seeds.
        fixed_box: Use the training split's median box for each guess instead of the regressor's.
    """

    name: str
    settings: tuple[str, ...] = ()
    from_scratch: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)
    suppress: float | None = None
    committee: bool = False
    fixed_box: bool = False


@dataclass(frozen=True)
class Choice:
    """One of the paper's choices, named with its section. Its other variants are compared with the first.

    Attributes:
        protocol: The evaluation protocol that scores it.
    """

    name: str
    protocol: str
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Ladder:
    """The choices that are compared on one kind of data.

    Attributes:
        recipe: The recipe to train.
        settings: Changes to the recipe that make many runs affordable.
        stages: The stages to train.
        choices: The choices to compare.
        pinned: Settings that keep the recipe as it was when the choices were first compared.
    """

    recipe: str
    settings: tuple[str, ...]
    stages: tuple[str, ...]
    choices: tuple[Choice, ...]
    pinned: tuple[str, ...] = ()


def _choice(name: str, *variants: Variant, protocol: str = "detection") -> Choice:
    return Choice(name, protocol, variants)


def _scales(count: int) -> Choice:
    """Compare all scales, the middle one and every second one."""
    middle, second = ((count + 1) // 2,), tuple(range(1, count + 1, 2))
    return _choice(
        "Scales (3.3)",
        Variant(f"all {count} scales", changes={"scales": None}),
        Variant(f"scale {middle[0]}", changes={"scales": middle}),
        Variant(f"scales {', '.join(map(str, second))}", changes={"scales": second}),
    )


def _thresholds(*values: float, protocol: str = "detection") -> Choice:
    variants = (Variant(f"t = {t}", changes={"merge_threshold": t}) for t in values)
    return _choice("Merging threshold t (4.3)", *variants, protocol=protocol)


def _least_scores(*values: float) -> Choice:
    variants = (Variant(f"{score}", changes={"min_score": score}) for score in values)
    return _choice("Least score of a window that votes", *variants)


def _context(name: str = "Context (5)", protocol: str = "detection") -> Choice:
    return _choice(name, Variant("without"), Variant("with", ("context=true",), from_scratch=True), protocol=protocol)


def _box_choices(protocol: str, *losses: Variant) -> tuple[Choice, ...]:
    """Return the choices of how boxes are learned."""
    forms = (Variant("edges"), Variant("centre and size", ("box_form=center_size",)))
    regressors = (Variant("SCR"), Variant("PCR", ("per_class=true",)))
    gradients = (Variant("frozen"), Variant("end to end", ("through_features=true",)))
    return (
        _choice("Box loss (6, ii)", *losses, protocol=protocol),
        _choice("Box form (6, iii)", *forms, protocol=protocol),
        _choice("One regressor or one a class (4.3)", *regressors, protocol=protocol),
        _choice("Localization loss through the features (6, i)", *gradients, protocol=protocol),
    )


_STRIDE = _choice("Stride (3.3)", Variant("fine", changes={"fine": True}), Variant("coarse", changes={"fine": False}))
_FLIPS = _choice(
    "Flips (3.3)", Variant("no flips", changes={"flips": False}), Variant("flips", changes={"flips": True})
)
_MERGING = {"merge_average": "weighted", "merge_across_classes": False}
_COMBINING = _choice(
    "Combining boxes (4.3)",
    Variant("merging", changes=_MERGING),
    Variant("merging, plain average", changes=_MERGING | {"merge_average": "plain"}),
    Variant("merging across classes", changes=_MERGING | {"merge_across_classes": True}),
    *(Variant(f"non-maximum suppression, IoU {iou}", suppress=iou) for iou in IOUS),
)
_NEGATIVES = _choice("Negatives (5)", Variant("offending"), Variant("random", ("negatives=random",)))
_COMMITTEE = _choice(
    "Committee (Table 2)", Variant("one network"), Variant("committee", committee=True), protocol="classification"
)


def _detection_choices(scales: int) -> tuple[Choice, ...]:
    """Return the choices for a preset with so many scales: first those that need no training of their own."""
    weight = f"box_weight={IOU_BOX_WEIGHT}"
    losses = (Variant("L2"), Variant("IoU", ("box_loss=iou", weight)), Variant("GIoU", ("box_loss=giou", weight)))
    inference = (_STRIDE, _scales(scales), _FLIPS, _COMBINING, _thresholds(0.5, 0.3, 0.4, 0.7))
    least_scores = _least_scores(0.3, 0.1, 0.2, 0.5)
    return (*inference, least_scores, _NEGATIVES, _context(), *_box_choices("detection", *losses), _COMMITTEE)


_DENSE = {"views": "dense", "flips": True, "fine": True}
_FOUR = _DENSE | {"scales": (1, 2, 3, 4)}
_CENTRE_CROP = Variant("centre crop", changes={"views": "centre", "flips": False})


def _first(count: int, fixed_box: bool = False) -> Variant:
    """Scan the first `count` scales."""
    name = ("scale 1" if count == 1 else f"scales 1-{count}") + ", a fixed box" * fixed_box
    return Variant(name, changes=_DENSE | {"scales": tuple(range(1, count + 1))}, fixed_box=fixed_box)


def _head_channels(count: int) -> Variant:
    settings = (f"classifier_channels={count},{count}", f"regressor_channels={count},{count // 2}")
    return Variant(f"{count}, {count} and {count}, {count // 2}", settings, from_scratch=True)


LADDERS = {
    "digits": Ladder(
        "digits-quick",
        (),
        ("classification", "localization", "detection"),
        _detection_choices(scales=7),
        pinned=("scales=preset",),  # the variants name scales by their numbers in the preset
    ),
    "voc": Ladder(
        "voc",
        ("classification.steps=1000", "localization.steps=100", "detection.steps=700"),
        ("classification", "localization", "detection"),
        _detection_choices(scales=5),
        pinned=("scales=preset", "box_form=edges"),
    ),
    "tinyimagenet": Ladder(
        "tinyimagenet",
        ("classification.steps=1200", "classification.epochs=4", "localization.steps=300", "localization.epochs=1"),
        ("classification", "localization"),
        (
            _choice(
                "Table 2",
                Variant("scales 1-4, fine stride", changes=_FOUR),
                _CENTRE_CROP,
                Variant("ten views", changes={"views": "ten"}),
                Variant("scale 2, coarse stride", changes=_DENSE | {"scales": (2,), "fine": False}),
                Variant("scale 2, fine stride", changes=_DENSE | {"scales": (2,)}),
                Variant("scales 1-4, coarse stride", changes=_FOUR | {"fine": False}),
                Variant("scales 1-4, fine stride, no flips", changes=_FOUR | {"flips": False}),
                Variant("scales 1-5, fine stride", changes=_DENSE | {"scales": None}),
                Variant("committee, scales 1-4, fine stride", changes=_FOUR, committee=True),
                protocol="classification",
            ),
            _choice(
                "Fig. 9: error against scales",
                *map(_first, (3, 1, 2, 4, 5)),
                _CENTRE_CROP,
                *(_first(count, fixed_box=True) for count in (3, 1)),
                protocol="localization",
            ),
            _thresholds(0.3, 0.2, 0.5, 0.7, protocol="localization"),
            _context(protocol="localization"),
            _context("Context, classification (5)", protocol="classification"),
            *_box_choices(
                "localization",
                Variant("L2"),
                Variant("IoU", ("box_loss=iou", IOU_RATE)),
                Variant("GIoU", ("box_loss=giou", IOU_RATE)),
            ),
        ),
    ),
    "finetune": Ladder(
        "finetune",
        ("detection.passes=30",),
        ("classification", "localization", "detection"),
        (
            _STRIDE,
            _FLIPS,
            _COMBINING,
            _thresholds(0.2, 0.1, 0.3, 0.4),
            _least_scores(0.1, 0.3, 0.05),
            _choice("Features (5)", Variant("fine-tuned"), Variant("frozen", ("detection.backbone_multiplier=0",))),
            _choice(
                "Layer: its stride in pixels",
                Variant("16"),
                *(Variant(f"{stride}", (f"layer={stride}",), from_scratch=True) for stride in (8, 32)),
            ),
            _choice("Channels of the heads", Variant("256, 256 and 256, 128"), *map(_head_channels, (64, 512))),
            _choice("Average of the weights", Variant("none"), Variant("decay 0.99", ("ema=0.99",))),
            _context(),
            _choice(
                "Box loss (6, ii)",
                Variant("GIoU and L1"),
                Variant("GIoU", ("box_loss=giou",)),
                Variant("IoU", ("box_loss=iou",)),
                Variant("L2", ("box_loss=l2", "box_weight=20")),  # a tenth as large as GIoU, whose weight is 2
            ),
            _NEGATIVES,
        ),
    ),
}
