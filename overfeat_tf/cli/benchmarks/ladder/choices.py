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
        name: Its name.
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
    """One of the paper's choices. Its other variants are compared with the first.

    Attributes:
        name: Its name, with the section of the paper.
        protocol: The evaluation protocol that scores it.
        variants: The variants.
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
        split: The split to score on.
        pinned: Settings that keep the recipe as it was when the choices were first compared.
    """

    recipe: str
    settings: tuple[str, ...]
    stages: tuple[str, ...]
    choices: tuple[Choice, ...]
    split: str = "val"
    pinned: tuple[str, ...] = ()


def _scales(count: int, protocol: str) -> Choice:
    """Compare all scales, the middle one and every second one."""
    middle, second = ((count + 1) // 2,), tuple(range(1, count + 1, 2))
    variants = (
        Variant(f"all {count} scales", changes={"scales": None}),
        Variant(f"scale {middle[0]}", changes={"scales": middle}),
        Variant(f"scales {', '.join(map(str, second))}", changes={"scales": second}),
    )
    return Choice("Scales (3.3)", protocol, variants)


def _first(count: int) -> str:
    """Name the first `count` scales."""
    return "scale 1" if count == 1 else f"scales 1-{count}"


_STRIDE = Choice(
    "Stride (3.3)",
    "detection",
    (Variant("fine", changes={"fine": True}), Variant("coarse", changes={"fine": False})),
)
_FLIPS = Choice(
    "Flips (3.3)",
    "detection",
    (Variant("no flips", changes={"flips": False}), Variant("flips", changes={"flips": True})),
)
_MERGING = {"merge_average": "weighted", "merge_across_classes": False}
_COMBINING = Choice(
    "Combining boxes (4.3)",
    "detection",
    (
        Variant("merging", changes=_MERGING),
        Variant("merging, plain average", changes=_MERGING | {"merge_average": "plain"}),
        Variant("merging across classes", changes=_MERGING | {"merge_across_classes": True}),
        *(Variant(f"non-maximum suppression, IoU {iou}", suppress=iou) for iou in IOUS),
    ),
)


def _thresholds(protocol: str, *values: float) -> Choice:
    variants = tuple(Variant(f"t = {t}", changes={"merge_threshold": t}) for t in values)
    return Choice("Merging threshold t (4.3)", protocol, variants)


def _least_scores(*values: float) -> Choice:
    variants = tuple(Variant(f"{score}", changes={"min_score": score}) for score in values)
    return Choice("Least score of a window that votes", "detection", variants)


def _inference_choices(scales: int) -> tuple[Choice, ...]:
    """Return the choices that need no training of their own."""
    thresholds = _thresholds("detection", 0.5, 0.3, 0.4, 0.7)
    return (_STRIDE, _scales(scales, "detection"), _FLIPS, _COMBINING, thresholds, _least_scores(0.3, 0.1, 0.2, 0.5))


def _regressors(protocol: str) -> Choice:
    return Choice("One regressor or one a class (4.3)", protocol, (Variant("SCR"), Variant("PCR", ("per_class=true",))))


def _through_features(protocol: str) -> Choice:
    variants = (Variant("frozen"), Variant("end to end", ("through_features=true",)))
    return Choice("Localization loss through the features (6, i)", protocol, variants)


def _context(protocol: str, name: str = "Context (5)") -> Choice:
    return Choice(name, protocol, (Variant("without"), Variant("with", ("context=true",), from_scratch=True)))


def _box_form(protocol: str) -> Choice:
    return Choice(
        "Box form (6, iii)", protocol, (Variant("edges"), Variant("centre and size", ("box_form=center_size",)))
    )


_COMMITTEE = Choice(
    "Committee (Table 2)", "classification", (Variant("one network"), Variant("committee", committee=True))
)
_NEGATIVES = Choice("Negatives (5)", "detection", (Variant("offending"), Variant("random", ("negatives=random",))))
_TRAINING_CHOICES = (
    _NEGATIVES,
    _context("detection"),
    Choice(
        "Box loss (6, ii)",
        "detection",
        (
            Variant("L2"),
            Variant("IoU", ("box_loss=iou", f"box_weight={IOU_BOX_WEIGHT}")),
            Variant("GIoU", ("box_loss=giou", f"box_weight={IOU_BOX_WEIGHT}")),
        ),
    ),
    _box_form("detection"),
    _COMMITTEE,
    _regressors("detection"),
    _through_features("detection"),
)

_DENSE = {"views": "dense", "flips": True, "fine": True}
_FOUR = _DENSE | {"scales": (1, 2, 3, 4)}

LADDERS = {
    "digits": Ladder(
        "digits-quick",
        (),
        ("classification", "localization", "detection"),
        (*_inference_choices(7), *_TRAINING_CHOICES),
        pinned=("scales=preset",),  # the variants name scales by their numbers in the preset
    ),
    "voc": Ladder(
        "voc",
        ("classification.steps=1000", "localization.steps=100", "detection.steps=700"),
        ("classification", "localization", "detection"),
        (*_inference_choices(5), *_TRAINING_CHOICES),
        pinned=("scales=preset", "box_form=edges"),
    ),
    "tinyimagenet": Ladder(
        "tinyimagenet",
        ("classification.steps=1200", "classification.epochs=4", "localization.steps=300", "localization.epochs=1"),
        ("classification", "localization"),
        (
            Choice(
                "Table 2",
                "classification",
                (
                    Variant("scales 1-4, fine stride", changes=_FOUR),
                    Variant("centre crop", changes={"views": "centre", "flips": False}),
                    Variant("ten views", changes={"views": "ten"}),
                    Variant("scale 2, coarse stride", changes=_DENSE | {"scales": (2,), "fine": False}),
                    Variant("scale 2, fine stride", changes=_DENSE | {"scales": (2,)}),
                    Variant("scales 1-4, coarse stride", changes=_FOUR | {"fine": False}),
                    Variant("scales 1-4, fine stride, no flips", changes=_FOUR | {"flips": False}),
                    Variant("scales 1-5, fine stride", changes=_DENSE | {"scales": None}),
                    Variant("committee, scales 1-4, fine stride", changes=_FOUR, committee=True),
                ),
            ),
            Choice(
                "Fig. 9: error against scales",
                "localization",
                (
                    *(Variant(_first(n), changes=_DENSE | {"scales": tuple(range(1, n + 1))}) for n in (3, 1, 2, 4, 5)),
                    Variant("centre crop", changes={"views": "centre", "flips": False}),
                    *(
                        Variant(
                            f"{_first(n)}, a fixed box",
                            changes=_DENSE | {"scales": tuple(range(1, n + 1))},
                            fixed_box=True,
                        )
                        for n in (3, 1)
                    ),
                ),
            ),
            _thresholds("localization", 0.3, 0.2, 0.5, 0.7),
            _context("localization"),
            _context("classification", "Context, classification (5)"),
            _box_form("localization"),
            _regressors("localization"),
            _through_features("localization"),
            Choice(
                "Box loss (6, ii)",
                "localization",
                (
                    Variant("L2"),
                    Variant("IoU", ("box_loss=iou", IOU_RATE)),
                    Variant("GIoU", ("box_loss=giou", IOU_RATE)),
                ),
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
            _thresholds("detection", 0.2, 0.1, 0.3, 0.4),
            _least_scores(0.1, 0.3, 0.05),
            Choice(
                "Features (5)",
                "detection",
                (Variant("fine-tuned"), Variant("frozen", ("detection.backbone_multiplier=0",))),
            ),
            Choice(
                "Layer: its stride in pixels",
                "detection",
                (
                    Variant("16"),
                    Variant("8", ("layer=8",), from_scratch=True),
                    Variant("32", ("layer=32",), from_scratch=True),
                ),
            ),
            Choice(
                "Channels of the heads",
                "detection",
                (
                    Variant("256, 256 and 256, 128"),
                    *(
                        Variant(
                            f"{n}, {n} and {n}, {n // 2}",
                            (f"classifier_channels={n},{n}", f"regressor_channels={n},{n // 2}"),
                            from_scratch=True,
                        )
                        for n in (64, 512)
                    ),
                ),
            ),
            Choice("Average of the weights", "detection", (Variant("none"), Variant("decay 0.99", ("ema=0.99",)))),
            _context("detection"),
            Choice(
                "Box loss (6, ii)",
                "detection",
                (
                    Variant("GIoU and L1"),
                    Variant("GIoU", ("box_loss=giou",)),
                    Variant("IoU", ("box_loss=iou",)),
                    Variant("L2", ("box_loss=l2", "box_weight=20")),  # a tenth as large as GIoU, whose weight is 2
                ),
            ),
            _NEGATIVES,
        ),
    ),
}
