"""The three stages as compiled Keras models over one network: classification, localization, detection (3, 4, 5)."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from overfeat_tf.arguments import suggest
from overfeat_tf.network.convnet import DenseHead, Network
from overfeat_tf.network.keras_backbone import KerasBackbone, leaf_layers
from training.fit.losses import BoxLoss, ClassLoss, Criterion, DetectionLoss, ObjectLoss
from training.fit.train_step import StageModel
from training.recipes import Recipe, Schedule

COSINE_END = 0.01  # of the learning rate, at the end of the cosine


def seed_stage(fitted: StageModel, seed: tuple[int, ...]) -> None:
    """Begin a stage's random numbers, of dropout and of losses, by a seed of its own.

    Else they would go on from those of the stage before, which a process that takes the run up between them has not
    drawn.
    """
    for number, state in enumerate(fitted.random_states):
        first = np.random.SeedSequence((*seed, number)).generate_state(1)[0]
        state.assign(np.array([first, 0], state.dtype))


def classification_model(network: Network, recipe: Recipe) -> StageModel:
    """Fit features and classifier on single windows: in training the network is non-spatial (3.1)."""
    _set_trainable(network, recipe, recipe.classification, network.features, network.classifier)
    pixels = keras.Input((network.preset.window, network.preset.window, 3), name="pixels")
    scores = DenseHead.of(network.classifier, network.preset, fine=False, name="scores")(network.head_maps(pixels))
    logits = layers.Flatten(name="logits")(scores)
    criterion = Criterion(
        ClassLoss(recipe.weights_of_classes()),
        metrics=[
            keras.metrics.SparseCategoricalAccuracy(name="top1"),
            keras.metrics.SparseTopKCategoricalAccuracy(k=5, name="top5"),
        ],
    )
    return _compiled(pixels, logits, criterion, network, recipe, recipe.classification)


def localization_model(network: Network, recipe: Recipe) -> StageModel:
    """Fit the regressor on the frozen features (4.2), or on features that learn with it (6, i)."""
    if recipe.through_features:
        return _joint_model(network, recipe, recipe.localization)
    _set_trainable(network, recipe, recipe.localization, network.regressor)
    dense = network.as_model(_view_side(recipe), recipe.fine)
    criterion = Criterion({"boxes": BoxLoss(recipe.box_loss, network.box_form)})
    outputs = {"boxes": dense.output["boxes"]}
    return _compiled(dense.input, outputs, criterion, network, recipe, recipe.localization)


def detection_model(network: Network, recipe: Recipe) -> StageModel:
    """Fit everything on many windows at once (5): the features move, so the regressor follows them."""
    return _joint_model(network, recipe, recipe.detection)


def _joint_model(network: Network, recipe: Recipe, schedule: Schedule) -> StageModel:
    """Fit the whole network by both losses: where the features move, each head has to follow them."""
    _set_trainable(network, recipe, schedule, network.features, network.classifier, network.regressor)
    dense = network.as_model(_view_side(recipe), recipe.fine)
    negatives = (recipe.negatives, recipe.negatives_per_object, recipe.negatives_at_least)
    weights = recipe.weights_of_classes()
    scores = DetectionLoss(*negatives, weights) if network.background else ObjectLoss(weights)
    losses = {"scores": scores, "boxes": BoxLoss(recipe.box_loss, network.box_form)}
    criterion = Criterion(losses, {"boxes": recipe.box_weight})
    return _compiled(dense.input, dense.output, criterion, network, recipe, schedule)


def _view_side(recipe: Recipe) -> int | None:
    """Return the side of the spatial stages' views in pixels; None where it varies from batch to batch."""
    return None if recipe.views.whole_image else recipe.side


def _compiled(
    inputs, outputs, criterion: Criterion, network: Network, recipe: Recipe, schedule: Schedule
) -> StageModel:
    model = StageModel(inputs, outputs, criterion, network, recipe.precision, schedule.accumulate)
    optimizer = _optimizer(schedule, network)
    if recipe.precision == "mixed_float16":  # whose small gradients would vanish
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer, jit_compile=recipe.jit_compile)
    return model


def _set_trainable(network: Network, recipe: Recipe, schedule: Schedule, *parts: keras.Model) -> None:
    """Make these parts trainable and freeze the others, and the backbone as far as the recipe says."""
    for part in network.parts.values():
        part.trainable = any(part is learning for learning in parts)
    backbone = network.backbone
    if network.features not in parts:
        return
    backbone.trainable = schedule.backbone_multiplier > 0
    frozen = count_frozen(recipe, network)
    for number, (layer, _) in enumerate(leaf_layers(backbone)):
        fixed = isinstance(layer, layers.BatchNormalization) and recipe.batch_norm == "inference"
        # Each by itself: a model that is trainable already does not tell the layers that a stage before has frozen.
        layer.trainable = schedule.backbone_multiplier > 0 and number >= frozen and not fixed


def count_frozen(recipe: Recipe, network: Network) -> int:
    """Count the first layers of the network's backbone that `frozen_to` freezes.

    Raises:
        ValueError: the backbone has no such layer.
    """
    last, backbone = recipe.frozen_to, network.preset.backbone
    names = [name for _, name in leaf_layers(network.backbone)]
    if last is not None and last.isdigit():
        pretrained = recipe.weights is not None
        below = backbone.layers_to_stride(int(last)) if pretrained and isinstance(backbone, KerasBackbone) else []
        last = next((name for name in reversed(below) if name in names), None)
    if last is None:
        return 0
    if last not in names:
        raise ValueError(
            f"expected frozen_to to be a layer of the backbone, or a stride; got '{last}'{suggest(last, names)}"
        )
    return len(names) - names[::-1].index(last)


def _optimizer(schedule: Schedule, network: Network) -> keras.optimizers.Optimizer:
    """Build the optimizer of a stage, with its learning-rate schedule."""
    slow = {}
    if schedule.backbone_multiplier != 1:
        slow = {variable.path: schedule.backbone_multiplier for variable in network.backbone.variables}
    learning_rate, decay = _learning_rate(schedule), schedule.weight_decay
    if schedule.optimizer == "adamw":
        return StageAdamW(schedule.clip, 0.0, decay, slow, learning_rate=learning_rate, beta_1=schedule.momentum)
    l2, decoupled = (0.0, decay) if schedule.decay == "decoupled" else (decay, 0.0)
    return StageSGD(schedule.clip, l2, decoupled, slow, learning_rate=learning_rate, momentum=schedule.momentum)


def _learning_rate(schedule: Schedule) -> keras.optimizers.schedules.LearningRateSchedule | float:
    """Return the learning rate by step: it falls in steps (3.1) or along a cosine, after a warm-up if there is one."""
    learning_rate, boundaries = schedule.learning_rate, schedule.boundaries
    if schedule.schedule == "cosine":
        learning_rate = keras.optimizers.schedules.CosineDecay(learning_rate, schedule.steps, alpha=COSINE_END)
    elif boundaries:
        values = [learning_rate * schedule.factor**i for i in range(len(boundaries) + 1)]
        learning_rate = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)
    return WarmUp(learning_rate, schedule.warm_up) if schedule.warm_up else learning_rate


class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule, or a constant learning rate, that rises linearly from a tenth over the first steps."""

    def __init__(self, after: keras.optimizers.schedules.LearningRateSchedule | float, steps: int):
        super().__init__()
        self.after, self.steps = after, steps

    def __call__(self, step):
        """Return the learning rate at a step."""
        share = keras.ops.minimum(keras.ops.cast(step, "float32") / self.steps, 1.0)
        return (self.after(step) if callable(self.after) else self.after) * (0.1 + 0.9 * share)

    def get_config(self):
        """Return the schedule's arguments, for the JSON of a model that `keras.callbacks.TensorBoard` writes."""
        return {"after": keras.saving.serialize_keras_object(self.after), "steps": self.steps}


class StageOptimizer(keras.optimizers.Optimizer):
    """What the optimizers of stages have in common: the global batch's gradient, of norm `clip` at most (None: any).

    Keras's own `global_clipnorm` clips each device's part before it adds them, so that the steps would depend on how
    many devices there are. `slow` has factors on the learning rates of variables, by their paths. Weight decay is
    `decoupled`, at the learning rate before `slow`, as Keras's own; or `l2`, which goes through the momentum (3.1), and
    so pulls 1 / (1 - momentum) as hard. Biases and normalisation have no part in either. At a backbone's slow rate
    `finetune` has 0.025 less mAP50 on nuclei, and gains nothing on raccoons (one seed each).
    """

    def __init__(
        self,
        clip: float | None = None,
        l2: float = 0.0,
        decoupled: float = 0.0,
        slow: dict[str, float] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self._clip, self._l2, self._decoupled, self._slow = clip, l2, decoupled, slow or {}
        self._factor: Callable[[tf.Variable], float] = lambda variable: 1.0

    def build(self, variables):
        """Make the optimizer's variables, and know those that are slow on every device."""
        super().build(variables)
        if self._slow:
            local = tf.distribute.get_strategy().experimental_local_results
            factors = {part.ref(): self._slow.get(v.path, 1.0) for v in variables for part in local(v.value)}
            self._factor = lambda variable: factors.get(variable.ref(), 1.0)

    def apply(self, grads, trainable_variables=None):
        """Add up the devices' gradients, clip, decay, and hand each its share, which Keras adds up again.

        Raises:
            ValueError: L2 decay without the variables.
        """
        replicas = tf.distribute.get_replica_context()
        if replicas.num_replicas_in_sync > 1:
            grads = replicas.all_reduce(tf.distribute.ReduceOp.SUM, grads)
        if self._clip is not None:
            grads, _ = tf.clip_by_global_norm(grads, self._clip)
        if self._l2:
            if trainable_variables is None:
                raise ValueError("expected the variables with their gradients, for their L2 decay; got gradients alone")
            pairs = zip(grads, trainable_variables, strict=True)
            grads = [g + self._l2 * tf.convert_to_tensor(v) if len(v.shape) > 1 else g for g, v in pairs]
        super().apply([grad / replicas.num_replicas_in_sync for grad in grads], trainable_variables)

    def update_step(self, gradient, variable, learning_rate):
        """Decay and move a variable, a device's own, at its learning rate."""
        factor = self._factor(variable)
        own = learning_rate * factor if factor != 1 else learning_rate
        if self._decoupled and len(variable.shape) > 1:
            variable.assign_sub(tf.cast(self._decoupled * learning_rate, variable.dtype) * variable)
        super().update_step(gradient, variable, own)


class StageSGD(StageOptimizer, keras.optimizers.SGD):
    """SGD with momentum."""


class StageAdamW(StageOptimizer, keras.optimizers.Adam):
    """Adam with decoupled weight decay."""
