"""The paper's choices, each beside its alternatives: what `overfeat benchmark ladder` asks, and of which data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# What the box loss times `box_weight` then comes to is about what it was: see `Recipe.box_loss`.
SMALLER = 0.5
SLOWER = "localization.rate=0.003"  # likewise where the box loss stands alone
IOUS = (0.3, 0.5)  # of non-maximum suppression


@dataclass(frozen=True)
class Way:
    """One way to go about something.

    Attributes:
        name: Of the way.
        settings: Of training, as `overfeat train --set` takes them; empty: the run that all other questions share.
        whole: Whether the settings change the first stage too, which else all runs of a seed share.
        changes: Options of inference.
        suppress: Combine boxes by non-maximum suppression at this IoU rather than by merging.
        committee: Whether the runs of all seeds answer together.
        fixed_box: Put the training split's median box on each guess in place of the regressor's.
    """

    name: str
    settings: tuple[str, ...] = ()
    whole: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)
    suppress: float | None = None
    committee: bool = False
    fixed_box: bool = False


@dataclass(frozen=True)
class Question:
    """A choice of the paper's; the others of its ways are set against the first.

    Attributes:
        name: What is asked, with the section.
        protocol: How it is scored.
        ways: What there is to choose from.
    """

    name: str
    protocol: str
    ways: tuple[Way, ...]


@dataclass(frozen=True)
class Ladder:
    """The questions of one kind of data.

    Attributes:
        recipe: By which it is trained.
        settings: Changes of the recipe's, so that many runs are affordable.
        stages: What is trained.
        questions: What is asked.
        split: What it is scored on.
        pinned: Settings of the recipe as it was when the questions were asked, which its ways are set against.
    """

    recipe: str
    settings: tuple[str, ...]
    stages: tuple[str, ...]
    questions: tuple[Question, ...]
    split: str = "val"
    pinned: tuple[str, ...] = ()


def _scales(count: int, protocol: str) -> Question:
    """One scale, every second one, all."""
    middle, second = ((count + 1) // 2,), tuple(range(1, count + 1, 2))
    ways = (
        Way(f"all {count} scales", changes={"scales": None}),
        Way(f"scale {middle[0]}", changes={"scales": middle}),
        Way(f"scales {', '.join(map(str, second))}", changes={"scales": second}),
    )
    return Question("Scales (3.3)", protocol, ways)


def _first(count: int) -> str:
    """Name the first so many scales."""
    return "scale 1" if count == 1 else f"scales 1-{count}"


def _detecting(scales: int) -> tuple[Question, ...]:
    """What is asked of a detector once it is trained."""
    merging = {"merge_average": "weighted", "merge_across_classes": False}
    return (
        Question(
            "Stride (3.3)",
            "detection",
            (Way("fine", changes={"fine": True}), Way("coarse", changes={"fine": False})),
        ),
        _scales(scales, "detection"),
        Question(
            "Flips (3.3)",
            "detection",
            (Way("no flips", changes={"flips": False}), Way("flips", changes={"flips": True})),
        ),
        Question(
            "Combining boxes (4.3)",
            "detection",
            (
                Way("merging", changes=merging),
                Way("merging, plain average", changes=merging | {"merge_average": "plain"}),
                Way("merging across classes", changes=merging | {"merge_across_classes": True}),
                *(Way(f"non-maximum suppression, IoU {iou}", suppress=iou) for iou in IOUS),
            ),
        ),
        Question(
            "Merging threshold t (4.3)",
            "detection",
            tuple(Way(f"t = {t}", changes={"merge_threshold": t}) for t in (0.5, 0.3, 0.4, 0.7)),
        ),
        Question(
            "Least score of a window that votes",
            "detection",
            tuple(Way(f"{score}", changes={"min_score": score}) for score in (0.3, 0.1, 0.2, 0.5)),
        ),
    )


def _regressors(protocol: str) -> Question:
    return Question("One regressor or one a class (4.3)", protocol, (Way("SCR"), Way("PCR", ("per_class=true",))))


def _through_features(protocol: str) -> Question:
    ways = (Way("frozen"), Way("end to end", ("through_features=true",)))
    return Question("Localization loss through the features (6, i)", protocol, ways)


def _context(protocol: str, name: str = "Context (5)") -> Question:
    return Question(name, protocol, (Way("without"), Way("with", ("context=true",), whole=True)))


def _box_form(protocol: str) -> Question:
    return Question("Box form (6, iii)", protocol, (Way("edges"), Way("centre and size", ("box_form=centre_size",))))


_COMMITTEE = Question("Committee (Table 2)", "classification", (Way("one network"), Way("committee", committee=True)))
_NEGATIVES = Question("Negatives (5)", "detection", (Way("offending"), Way("random", ("negatives=random",))))
_TRAINED_DETECTORS = (
    _NEGATIVES,
    _context("detection"),
    Question(
        "Box loss (6, ii)",
        "detection",
        (
            Way("L2"),
            Way("IoU", ("box_loss=iou", f"box_weight={SMALLER}")),
            Way("GIoU", ("box_loss=giou", f"box_weight={SMALLER}")),
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
        (*_detecting(7), *_TRAINED_DETECTORS),
        pinned=("scales=preset",),  # whose numbers the ways of scales have
    ),
    "voc": Ladder(
        "voc",
        ("classification.steps=1000", "localization.steps=100", "detection.steps=700"),
        ("classification", "localization", "detection"),
        (*_detecting(5), *_TRAINED_DETECTORS),
        pinned=("scales=preset", "box_form=edges"),
    ),
    "tinyimagenet": Ladder(
        "tinyimagenet",
        ("classification.steps=1200", "classification.epochs=4", "localization.steps=300", "localization.epochs=1"),
        ("classification", "localization"),
        (
            Question(
                "Table 2",
                "classification",
                (
                    Way("scales 1-4, fine stride", changes=_FOUR),
                    Way("centre crop", changes={"views": "centre", "flips": False}),
                    Way("ten views", changes={"views": "ten"}),
                    Way("scale 2, coarse stride", changes=_DENSE | {"scales": (2,), "fine": False}),
                    Way("scale 2, fine stride", changes=_DENSE | {"scales": (2,)}),
                    Way("scales 1-4, coarse stride", changes=_FOUR | {"fine": False}),
                    Way("scales 1-4, fine stride, no flips", changes=_FOUR | {"flips": False}),
                    Way("scales 1-5, fine stride", changes=_DENSE | {"scales": None}),
                    Way("committee, scales 1-4, fine stride", changes=_FOUR, committee=True),
                ),
            ),
            Question(
                "Fig. 9: error against scales",
                "localization",
                (
                    *(Way(_first(n), changes=_DENSE | {"scales": tuple(range(1, n + 1))}) for n in (3, 1, 2, 4, 5)),
                    Way("centre crop", changes={"views": "centre", "flips": False}),
                    *(
                        Way(
                            f"{_first(n)}, a fixed box",
                            changes=_DENSE | {"scales": tuple(range(1, n + 1))},
                            fixed_box=True,
                        )
                        for n in (3, 1)
                    ),
                ),
            ),
            Question(
                "Merging threshold t (4.3)",
                "localization",
                tuple(Way(f"t = {t}", changes={"merge_threshold": t}) for t in (0.3, 0.2, 0.5, 0.7)),
            ),
            _context("localization"),
            _context("classification", "Context, classification (5)"),
            _box_form("localization"),
            _regressors("localization"),
            _through_features("localization"),
            Question(
                "Box loss (6, ii)",
                "localization",
                (
                    Way("L2"),
                    Way("IoU", ("box_loss=iou", SLOWER)),
                    Way("GIoU", ("box_loss=giou", SLOWER)),
                ),
            ),
        ),
    ),
}
