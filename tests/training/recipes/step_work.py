"""How much arithmetic a recipe asks for."""

from overfeat_tf.network.presets import get_preset
from training.recipes.recipe import Recipe
from training.views.pyramid import square_side


def step_multiply_adds(recipe: Recipe, stage: str, classes: int) -> int:
    """Count the multiply-adds of one step, on average: forward once, and backward twice as much where weights learn.

    Args:
        recipe: The recipe.
        stage: classification, localization or detection.
        classes: Object classes.
    """
    preset, batch = get_preset(recipe.preset), getattr(recipe, stage).batch
    if stage == "classification":
        window = preset.window
        head = sum(layer.multiply_adds for layer in preset.head("classifier", classes))
        return 3 * batch * (preset.backbone.multiply_adds(window, window) + head)
    scales = recipe.inference.scale_sizes(preset)  # of scales=auto nobody knows yet: the preset's
    sides = [square_side(preset, scale) for scale in scales] if recipe.views.whole_image else [recipe.side]
    features = sum(preset.backbone.multiply_adds(side, side) for side in sides) // len(sides)
    windows = sum(preset.window_count(side, recipe.fine) ** 2 for side in sides) / len(sides)
    outputs = 4 * classes if recipe.per_class else 4
    boxes = windows * sum(layer.multiply_adds for layer in preset.head("regressor", outputs))
    if stage == "localization" and not recipe.through_features:
        return round(batch * (features + 3 * boxes))
    classifier = preset.head("classifier", classes + (stage == "detection"))
    scores = windows * sum(layer.multiply_adds for layer in classifier)
    return round(3 * batch * (features + boxes + scores))
