"""An exponential moving average of the weights, which often answers better than the last step's."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras
import tensorflow as tf

from overfeat_tf.network.convnet import Network
from overfeat_tf.network.keras_backbone import leaf_layers
from training.fit.train_step import StageModel


class Averages(keras.callbacks.Callback):
    """Average the weights that a stage moves, after each step; and show the averages to its validation.

    Keras's own `use_ema` has one decay from the first step on, so that a short stage would be averaged with the weights
    that it began with, and leaves out the statistics of batch normalisation.

    Args:
        model: The stage's compiled model.
        network: What it is made of.
        decay: Of the average; until it has seen so many steps, (1 + step) / (10 + step).
    """

    def __init__(self, model: StageModel, network: Network, decay: float):
        super().__init__()
        self._decay, self._steps = decay, model.optimizer.iterations
        layers = [layer for part in network.parts.values() for layer, _ in leaf_layers(part) if layer.trainable]
        self._weights = [weight for layer in layers for weight in layer.weights]
        self.variables = [tf.Variable(weight.numpy(), trainable=False) for weight in self._weights]
        self._shown: list | None = None

        @tf.function(autograph=False)
        def update(decay: tf.Tensor) -> None:
            for average, weight in zip(self.variables, self._weights, strict=True):
                average.assign(decay * average + (1.0 - decay) * weight.value)

        self._update = update

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Take the step's weights into the average."""
        step = float(self._steps.numpy())
        self._update(tf.constant(min(self._decay, (1 + step) / (10 + step)), tf.float32))

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Show the averages."""
        self._shown = [weight.numpy() for weight in self._weights]
        self.apply()

    def on_test_end(self, logs: dict | None = None) -> None:
        """Go back to the weights themselves."""
        for weight, value in zip(self._weights, self._shown or (), strict=True):
            weight.assign(value)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the averages within a block."""
        self.on_test_begin()
        try:
            yield
        finally:
            self.on_test_end()

    def apply(self) -> None:
        """Give the weights the values of their averages."""
        for weight, average in zip(self._weights, self.variables, strict=True):
            weight.assign(average.numpy())
