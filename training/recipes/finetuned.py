"""What the recipes for the paper's networks on smaller sets than ImageNet share: they start from its weights."""

from training.pipeline import ViewOptions
from training.recipes.imagenet import SIDES
from training.recipes.recipe import Recipe, Schedule


def finetuned(name: str, preset: str, classification: int, localization: int, detection: int) -> Recipe:
    """Make a recipe of the given steps for a network that starts `--from` one that classifies (5).

    Rates are a fifth of 3.1's at most: the features are to be kept. Momentum and L2 decay are as in 3.1.
    """
    paper = {"factor": 0.5, "momentum": 0.6, "weight_decay": 1e-5, "decay": "l2"}
    drops = (0.4, 0.6, 0.8)
    return Recipe(
        name=name,
        data=None,
        preset=preset,
        classification=Schedule(steps=classification, batch=64, rate=5e-3, drops=drops, epochs=10, **paper),
        localization=Schedule(steps=localization, batch=32, rate=1e-2, drops=drops, epochs=5, **paper),
        detection=Schedule(steps=detection, batch=32, rate=5e-3, drops=drops, epochs=20, **paper),
        side=SIDES[preset],
        views=ViewOptions(object_share=0.7),
        validation_images=200,
    )
