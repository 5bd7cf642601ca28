"""The step of training: in reduced precision, and in parts where a batch does not fit the device."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras
import tensorflow as tf
from keras import layers

from overfeat_tf.network.convnet import DenseHead, Network


class StageModel(keras.Model):
    """A functional Keras model over a network, with its own way through a batch.

    Gradients are summed over parts of the batch within the one step, rather than by Keras's
    `gradient_accumulation_steps`: that counts each part as a step of the schedule, and each would be clipped.

    Args:
        inputs, outputs: As for `keras.Model`.
        network: The network whose layers it goes through.
        precision: As in the recipe. Variables, outputs and losses are float32 in all of them.
        accumulate: Into how many parts each device's share of a batch is divided.
    """

    def __init__(self, inputs, outputs, network: Network, precision: str, accumulate: int):
        super().__init__(inputs, outputs)
        heads = [layer for layer in self.layers if isinstance(layer, DenseHead)]
        self._computing = lambda: in_precision(network, heads, precision)
        self._accumulate = accumulate

    def call(self, inputs, training=None, mask=None):
        """Compute the outputs; the precision is set for as long as it takes to trace this, and no other use."""
        with self._computing():
            return super().call(inputs, training=training, mask=mask)

    def prepare(self, batch) -> None:
        """Make the metrics' variables for batches of the form that `batch` (TensorSpecs) has."""
        self._symbolic_build(data_batch=batch)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None) -> None:
        """Do nothing where Keras would draw a batch for `prepare`, which it cannot do with several workers."""

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
        return _reducible(self.compute_metrics(pixels, targets, outputs))

    def test_step(self, data) -> dict:
        """Score a batch."""
        return _reducible(super().test_step(data))

    def _gradients(self, pixels, targets) -> tuple[list[tf.Tensor], object]:
        """Give the gradients of the mean loss, scaled as the optimizer wants it, and the outputs."""
        with tf.GradientTape() as tape:
            outputs = self(pixels, training=True)
            loss = self.compute_loss(pixels, targets, outputs)
            scaled = self.optimizer.scale_loss(loss)
        # Keras divides the loss by the number of devices, so that their gradients add up.
        devices = tf.distribute.get_strategy().num_replicas_in_sync
        self._loss_tracker.update_state(loss * devices, sample_weight=tf.shape(pixels)[0])
        return tape.gradient(scaled, [variable.value for variable in self.trainable_variables]), outputs

    def _summed(self, pixels, targets) -> tuple[list[tf.Tensor], object]:
        """Do the same, a part of the batch after the other, so that one part's feature maps are held at a time."""
        size = pixels.shape[0] // self._accumulate

        def part(index: tf.Tensor):
            def cut(whole: tf.Tensor) -> tf.Tensor:  # not a slice with two ends, whose length XLA could not tell
                sides = zip(whole.shape[1:], tf.unstack(tf.shape(whole))[1:], strict=True)  # of whole images, any
                return tf.reshape(whole, [self._accumulate, size, *(known or now for known, now in sides)])[index]

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
        outputs = tf.nest.pack_sequence_as(self._outputs_struct, [array.concat() for array in kept])
        return [total / self._accumulate for total in sums], outputs


def _reducible(figures: dict) -> dict:
    """Give figures that Keras can average over several workers, which it does along an axis that scalars lack."""
    strategy = tf.distribute.get_strategy()
    # Keras asks the same.
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and strategy.extended._in_multi_worker_mode():
        return {name: tf.reshape(figure, [1]) for name, figure in figures.items()}
    return figures


@contextmanager
def in_precision(network: Network, heads: list[DenseHead], precision: str) -> Iterator[None]:
    """Let a network's layers compute in a precision, and in float32 again afterwards.

    The pixels' normalisation and the layers that give scores and boxes stay in float32.
    """
    computing: list[layers.Layer] = list(heads)
    for part in network.parts.values():
        rows = [layer for layer in part.layers if not isinstance(layer, layers.InputLayer | layers.Rescaling)]
        computing += rows if part is network.features else rows[:-1]
    try:
        for layer in computing:
            layer.dtype_policy = precision
        yield
    finally:
        for layer in computing:
            layer.dtype_policy = "float32"
