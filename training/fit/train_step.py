"""The step of training: in reduced precision, and in parts where a batch does not fit the device."""

import keras
import tensorflow as tf

from overfeat_tf.compute.precision import in_precision
from overfeat_tf.network.convnet import DenseHead, Network
from training.fit.losses import Criterion
from training.fit.strategy import worker_count


class StageModel(keras.Model):
    """A functional Keras model over a network, with its own way through a batch.

    Gradients are summed over parts of the batch within the one step, rather than by Keras's
    `gradient_accumulation_steps`: that counts each part as a step of the schedule, and each would be clipped.

    Args:
        inputs, outputs: As for `keras.Model`.
        criterion: What it learns by, and its figures.
        network: The network whose layers it goes through.
        precision: As in the recipe. Variables, outputs and losses are float32 in all of them.
        accumulate: Into how many parts each device's share of a batch is divided.
    """

    def __init__(self, inputs, outputs, criterion: Criterion, network: Network, precision: str, accumulate: int):
        super().__init__(inputs, outputs)
        self.criterion = criterion
        heads = [layer for layer in self.layers if isinstance(layer, DenseHead)]
        self._computing = lambda: in_precision(network, precision, heads)
        self._accumulate = accumulate

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The criterion's figures, which `fit` resets and reports."""
        return self.criterion.figures

    @property
    def random_states(self) -> list[keras.Variable]:
        """The states of the random generators: of dropout, and of the losses."""
        kept = {id(variable) for variable in (*self.weights, *self.metrics_variables)}
        return [variable for variable in self.variables if id(variable) not in kept] + self.criterion.random_states

    def call(self, inputs, training=None, mask=None):
        """Compute the outputs; the precision is set for as long as it takes to trace this, and no other use."""
        with self._computing():
            return super().call(inputs, training=training, mask=mask)

    def save(self, filepath, overwrite=True, **kwargs) -> None:
        """Save the plain functional model, without its training: what loads it needs `overfeat_tf` alone.

        `keras.callbacks.ModelCheckpoint` calls this.
        """
        keras.Model(self.input, self.output, name=self.name).save(filepath, overwrite=overwrite, **kwargs)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None) -> None:
        """Build nothing: all variables are made with the model.

        Keras would reduce a whole batch over the devices here, which fails with several workers
        (https://github.com/keras-team/keras/issues/20585).
        """

    def train_step(self, data) -> dict:
        """Take one step of the optimizer on a batch (pixels, targets)."""
        pixels, targets, _ = keras.utils.unpack_x_y_sample_weight(data)
        if self._accumulate == 1:
            gradients, outputs = self._gradients(pixels, targets)
        else:
            gradients, outputs = self._summed(pixels, targets)
        replicas = tf.distribute.get_replica_context()
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer) and replicas.num_replicas_in_sync > 1:
            # It looks for overflow on one device, for all: so each has to have what overflowed on any.
            summed = replicas.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            gradients = [gradient / replicas.num_replicas_in_sync for gradient in summed]
        self.optimizer.apply(gradients, self.trainable_variables)
        self.criterion.score(targets, outputs)
        return _reducible(self.get_metrics_result())

    def test_step(self, data) -> dict:
        """Score a batch."""
        pixels, targets, _ = keras.utils.unpack_x_y_sample_weight(data)
        outputs = self(pixels, training=False)
        self.criterion.loss(targets, outputs)
        self.criterion.score(targets, outputs)
        return _reducible(self.get_metrics_result())

    def _gradients(self, pixels, targets) -> tuple[list[tf.Tensor], object]:
        """Return the gradients of the mean loss, scaled as the optimizer wants it, and the outputs."""
        with tf.GradientTape() as tape:
            outputs = self(pixels, training=True)
            scaled = self.optimizer.scale_loss(self.criterion.loss(targets, outputs))
        return tape.gradient(scaled, [variable.value for variable in self.trainable_variables]), outputs

    def _summed(self, pixels, targets) -> tuple[list[tf.Tensor], object]:
        """Do the same, a part of the batch after the other, so that one part's feature maps are held at a time."""
        size = pixels.shape[0] // self._accumulate

        def part(index: tf.Tensor):
            def cut(values: tf.Tensor) -> tf.Tensor:  # not a slice with two ends, whose length XLA could not tell
                sides = zip(values.shape[1:], tf.unstack(tf.shape(values))[1:], strict=True)  # of whole images, any
                return tf.reshape(values, [self._accumulate, size, *(known or now for known, now in sides)])[index]

            return self._gradients(*tf.nest.map_structure(cut, (pixels, targets)))

        def more(index, sums, kept):
            gradients, outputs = part(index)
            sums = [old + new for old, new in zip(sums, gradients, strict=True)]
            written = [array.write(index, new) for array, new in zip(kept, tf.nest.flatten(outputs), strict=True)]
            return index + 1, sums, written

        sums = [tf.zeros(variable.shape) for variable in self.trainable_variables]
        shapes = [(size, *output.shape[1:]) for output in self.outputs]
        kept = [tf.TensorArray(tf.float32, self._accumulate, element_shape=shape) for shape in shapes]
        _, sums, kept = tf.while_loop(
            lambda index, *_: index < self._accumulate, more, (0, sums, kept), parallel_iterations=1
        )
        outputs = tf.nest.pack_sequence_as(self.output, [array.concat() for array in kept])
        return [total / self._accumulate for total in sums], outputs


def _reducible(figures: dict) -> dict:
    """Return figures that Keras can average over several workers, which it does along an axis that scalars lack.

    https://github.com/tensorflow/tensorflow/issues/72388
    """
    several = worker_count(tf.distribute.get_strategy()) > 1
    return {name: tf.reshape(figure, [1]) for name, figure in figures.items()} if several else figures
