"""What the recipes for the paper's networks on smaller sets than ImageNet share: they start from its weights."""

from dataclasses import replace

from training.recipes.imagenet import SIDES, WINDOWS
from training.recipes.recipe import Recipe
from training.views import ViewOptions


def finetuned(name: str, preset: str, classification: int, localization: int, detection: int) -> Recipe:
    """Make a recipe of the given steps for a network that starts `--from` one that classifies (5).

    Rates are a fifth of 3.1's at most: the features are to be kept. Momentum and L2 decay are as in 3.1.
    """
    return Recipe(
        name=name,
        data=None,
        preset=preset,
        classification=replace(WINDOWS, steps=classification, batch=64, rate=5e-3, epochs=10),
        localization=replace(WINDOWS, steps=localization, epochs=5),
        detection=replace(WINDOWS, steps=detection, rate=5e-3, epochs=20),
        side=SIDES[preset],
        views=ViewOptions(object_share=0.7),
        validation_images=200,
    )
