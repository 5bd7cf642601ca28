"""The three stages as compiled Keras models over one network: classification, localization, detection (3, 4, 5)."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from overfeat_tf.models.model import TASKS, Model
from overfeat_tf.network.convnet import DenseHead, Network, build
from training.checkpoints import random_states
from training.losses import BoxLoss, DetectionLoss, ObjectLoss
from training.recipes import Recipe, Schedule
from training.step import StageModel


def stage_model(stage: str, network: Network, recipe: Recipe) -> keras.Model:
    """Build and compile the Keras model that a stage fits; it shares the network's variables.

    Args:
        stage: One of `TASKS`.
        network: The network; for detection, one with a background class.
        recipe: The recipe.
    """
    return {"classification": _classification, "localization": _localization, "detection": _detection}[stage](
        network, recipe
    )


def seed_stage(fitted: keras.Model, seed: tuple[int, ...]) -> None:
    """Begin a stage's random numbers, of dropout and of losses, by a seed of its own.

    Else they would go on from those of the stage before, which a process that takes the run up between them has not
    drawn.
    """
    for number, state in enumerate(random_states(fitted)):
        first = np.random.SeedSequence((*seed, number)).generate_state(1)[0]
        state.assign(np.array([first, 0], state.dtype))


def _classification(network: Network, recipe: Recipe) -> keras.Model:
    """Fit features and classifier on single windows: in training the network is non-spatial (3.1)."""
    _let_learn(network, network.features, network.classifier)
    pixels = keras.Input((network.preset.window, network.preset.window, 3), name="pixels")
    scores = DenseHead(network.classifier, network.preset, fine=False, name="scores")(network.head_maps(pixels))
    logits = layers.Flatten(name="logits")(scores)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    metrics = [
        keras.metrics.SparseCategoricalAccuracy(name="top1"),
        keras.metrics.SparseTopKCategoricalAccuracy(k=5, name="top5"),
    ]
    return _compiled(pixels, logits, network, recipe, recipe.classification, loss=loss, metrics=metrics)


def _localization(network: Network, recipe: Recipe) -> keras.Model:
    """Fit the regressor on the frozen features (4.2), or on features that learn with it (6, i)."""
    if recipe.through_features:
        return _everything(network, recipe, recipe.localization)
    _let_learn(network, network.regressor)
    whole = network.whole(_view_side(recipe), recipe.fine)
    losses = {"boxes": BoxLoss(recipe.box_loss, network.box_form)}
    return _compiled(whole.input, {"boxes": whole.output["boxes"]}, network, recipe, recipe.localization, loss=losses)


def _detection(network: Network, recipe: Recipe) -> keras.Model:
    """Fit everything on many windows at once (5): the features move, so the regressor follows them."""
    return _everything(network, recipe, recipe.detection)


def _everything(network: Network, recipe: Recipe, schedule: Schedule) -> keras.Model:
    """Let both losses through the whole network: where the features move, each head has to follow them."""
    _let_learn(network, network.features, network.classifier, network.regressor)
    whole = network.whole(_view_side(recipe), recipe.fine)
    negatives = (recipe.negatives, recipe.negatives_per_object, recipe.negatives_at_least)
    scores = DetectionLoss(*negatives) if network.background else ObjectLoss()
    losses = {"scores": scores, "boxes": BoxLoss(recipe.box_loss, network.box_form)}
    weights = {"scores": 1.0, "boxes": recipe.box_weight}
    return _compiled(whole.input, whole.output, network, recipe, schedule, loss=losses, loss_weights=weights)


def _view_side(recipe: Recipe) -> int | None:
    """Return the side of the spatial stages' views in pixels; None where it varies from batch to batch."""
    return None if recipe.views.whole else recipe.side


def _compiled(inputs, outputs, network: Network, recipe: Recipe, schedule: Schedule, **losses) -> StageModel:
    model = StageModel(inputs, outputs, network, recipe.precision, schedule.accumulate)
    optimizer = _optimizer(schedule)
    if recipe.precision == "mixed_float16":  # whose small gradients would vanish
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, jit_compile=recipe.jit_compile, **losses)
    return model


def with_background(model: Model) -> Model:
    """Give a classifier its background class (5), keeping all that it has learnt; the new output starts at 0."""
    old = model.network
    network = build(
        old.preset,
        old.num_classes,
        background=True,
        per_class=old.per_class,
        box_form=old.box_form,
        context=old.context,
    )
    network.features.set_weights(old.features.get_weights())
    if "regressor" in old.parts:
        network.regressor.set_weights(old.regressor.get_weights())
    *_, kernel, bias = network.classifier.get_weights()
    *learnt, old_kernel, old_bias = old.classifier.get_weights()
    kernel[..., 0], kernel[..., 1:] = 0.0, old_kernel
    bias[0], bias[1:] = 0.0, old_bias
    network.classifier.set_weights([*learnt, kernel, bias])
    return Model(network, model.labels, model.options, model.tasks)


def _let_learn(network: Network, *parts: keras.Model) -> None:
    for part in network.parts.values():
        part.trainable = any(part is learning for learning in parts)


def _optimizer(schedule: Schedule) -> keras.optimizers.Optimizer:
    """Build SGD with momentum, weight decay and a stepwise rate (3.1)."""
    boundaries = schedule.boundaries
    values = [schedule.rate * schedule.factor**i for i in range(len(boundaries) + 1)]
    decoupled = schedule.decay == "decoupled"
    return StageSGD(
        schedule.clip,
        0.0 if decoupled else schedule.weight_decay,
        learning_rate=keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)
        if boundaries
        else schedule.rate,
        momentum=schedule.momentum,
        weight_decay=schedule.weight_decay if decoupled else None,
    )


class StageSGD(keras.optimizers.SGD):
    """SGD on the global batch's gradient, of norm `clip` at most (None: any), and L2 decay `l2` of the kernels.

    Keras's own `global_clipnorm` clips each device's part before it adds them, so that the steps would depend on how
    many devices there are. Its own `weight_decay` is decoupled; L2's goes through the momentum (3.1), and so pulls
    1 / (1 - momentum) as hard. Biases have no part in it, as in the networks of that time.
    """

    def __init__(self, clip: float | None = None, l2: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self._clip, self._l2 = clip, l2

    def apply(self, grads, trainable_variables=None):
        """Add up the devices' gradients, clip, decay, and hand each its share, which Keras adds up again."""
        replicas = tf.distribute.get_replica_context()
        if replicas.num_replicas_in_sync > 1:
            grads = replicas.all_reduce(tf.distribute.ReduceOp.SUM, grads)
        if self._clip is not None:
            grads, _ = tf.clip_by_global_norm(grads, self._clip)
        if self._l2:
            variables = self._trainable_variables if trainable_variables is None else trainable_variables
            pairs = zip(grads, variables, strict=True)
            grads = [g + self._l2 * tf.convert_to_tensor(v) if len(v.shape) > 1 else g for g, v in pairs]
        super().apply([grad / replicas.num_replicas_in_sync for grad in grads], trainable_variables)


__all__ = ["TASKS", "stage_model", "with_background"]
