"""How much of a disk a run takes."""

from overfeat_tf.models.model import TASKS
from overfeat_tf.network.presets import Preset, get_preset
from training.boards import PICTURES, SIDE
from training.checkpoints import KEPT
from training.recipes import Recipe

SPARE = 64 * 2**20  # bytes, for what is small: scalars, histograms, the graph
PICTURE = 3 * SIDE * SIDE  # bytes at most, as a PNG of noise


def room(recipe: Recipe, classes: int) -> int:
    """Tell how many bytes a run takes: weights, old and new; checkpoints, of weights and momenta; and logs."""
    weights = 4 * parameters(get_preset(recipe.preset), classes, recipe.per_class, recipe.context)
    epochs = sum(getattr(recipe, stage).epochs for stage in TASKS)
    return 2 * weights + (len(TASKS) * KEPT + 1) * 2 * weights + epochs * PICTURES * PICTURE + SPARE


def parameters(preset: Preset, classes: int, per_class: bool, context: bool) -> int:
    """Count the parameters of a network with all its parts and a background class, without building it."""
    heads = (("classifier", classes + 1), ("regressor", 4 * classes if per_class else 4))
    layers = [layer for part, outputs in heads for layer in preset.head(part, outputs, context)]
    return preset.backbone.parameters + sum(layer.parameters for layer in layers)
