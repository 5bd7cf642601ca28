"""Named recipes: data + network + schedule, each with its command, time and result; a file for each family."""

from collections.abc import Callable

from overfeat_tf.arguments import suggest
from training.recipes.finetuned import coco_accurate, coco_fast, finetune, finetune_classify, voc_accurate, voc_fast
from training.recipes.imagenet import imagenet_accurate, imagenet_fast
from training.recipes.recipe import Recipe, Schedule
from training.recipes.scratch import digits, digits_quick, tinyimagenet, voc
from training.recipes.settings import override, read_recipe

RECIPES: dict[str, Callable[[], Recipe]] = {
    "digits": digits,
    "digits-quick": digits_quick,
    "finetune": finetune,
    "finetune-classify": finetune_classify,
    "voc": voc,
    "tinyimagenet": tinyimagenet,
    "imagenet-fast": imagenet_fast,
    "imagenet-accurate": imagenet_accurate,
    "voc-fast": voc_fast,
    "voc-accurate": voc_accurate,
    "coco-fast": coco_fast,
    "coco-accurate": coco_accurate,
}

__all__ = ["RECIPES", "Recipe", "Schedule", "get_recipe", "override", "read_recipe"]


def get_recipe(name: str) -> Recipe:
    """Return the recipe of that name, a frozen dataclass.

        recipe = get_recipe("voc")
        recipe = dataclasses.replace(recipe, detection=dataclasses.replace(recipe.detection, steps=5000))

    Args:
        name: As for `overfeat train`.

    Raises:
        ValueError: no such recipe; the message names the nearest one.
    """
    if name not in RECIPES:
        raise ValueError(f"expected a recipe, one of {', '.join(RECIPES)}; got '{name}'{suggest(name, RECIPES)}")
    return RECIPES[name]()
