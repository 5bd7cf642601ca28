"""How much arithmetic a recipe asks for."""

from overfeat_tf.network.geometry import feature_multiply_adds, head_multiply_adds, window_count
from overfeat_tf.network.presets import get_preset
from training.recipes.recipe import Recipe
from training.views import square_side


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
        return 3 * batch * (feature_multiply_adds(preset, window, window) + head_multiply_adds(preset, classes))
    scales = recipe.inference.scale_sizes(preset)  # of scales=auto nobody knows yet: the preset's
    sides = [square_side(preset, scale) for scale in scales] if recipe.views.whole else [recipe.side]
    features = sum(feature_multiply_adds(preset, side, side) for side in sides) // len(sides)
    windows = sum(window_count(preset, side, recipe.fine) ** 2 for side in sides) / len(sides)
    wide, narrow = preset.regressor
    outputs = 4 * classes if recipe.per_class else 4
    boxes = windows * (preset.convs[-1].channels * preset.head_kernel**2 * wide + wide * narrow + narrow * outputs)
    if stage == "localization" and not recipe.through_features:
        return round(batch * (features + 3 * boxes))
    scores = windows * head_multiply_adds(preset, classes + (stage == "detection"))
    return round(3 * batch * (features + boxes + scores))
