"""A network in less than float32: its layers' compute type for as long as they are traced, and weights stored so.

Products and convolutions of bfloat16 sum in float32; their results are rounded to 8 significant bits, as are weights
and maps. Layers below the first with a kernel, which normalise the pixels, stay in float32, and so does the last layer
of each head, which gives scores and boxes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import dropwhile

import keras
from keras import layers

from overfeat_tf.network.convnet import Network
from overfeat_tf.network.keras_backbone import leaf_layers

MIXED = "mixed_bfloat16"  # Keras's policy: variables of float32, computed in bfloat16


def reducible_layers(network: Network) -> list[layers.Layer]:
    """List the layers that may compute in less than float32."""
    found: list[layers.Layer] = []
    for part in network.parts.values():
        rows = [row for row, _ in leaf_layers(part) if not isinstance(row, layers.InputLayer)]
        found += dropwhile(lambda row: not hasattr(row, "kernel"), rows) if part is network.features else rows[:-1]
    return found


@contextmanager
def in_precision(network: Network, policy: str, others: Sequence[layers.Layer] = ()) -> Iterator[None]:
    """Compute a network's layers, and `others`, under a Keras dtype policy; restore their own policies on exit.

    The layers that normalise pixels and those that give scores and boxes stay in float32.
    """
    before = [(layer, layer.dtype_policy) for layer in (*others, *reducible_layers(network))]
    try:
        for layer, _ in before:
            layer.dtype_policy = policy
        yield
    finally:
        for layer, own in before:
            layer.dtype_policy = own


def in_bfloat16(network: Network) -> Network:
    """Copy a network with the kernels that compute in bfloat16 stored so: half the memory, and the same answers."""
    reducible = {id(layer) for layer in reducible_layers(network)}

    def clone(layer: layers.Layer) -> layers.Layer:
        config = layer.get_config()
        if id(layer) in reducible:
            has_kernel = any(len(variable.shape) > 1 for variable in layer.variables)
            config["dtype"] = "bfloat16" if has_kernel else MIXED  # statistics stay float32
        if "kernel_initializer" in config:  # drawing weights takes seconds
            config["kernel_initializer"] = "zeros"
        return type(layer).from_config(config)

    copies = {}
    for name, part in network.parts.items():
        copies[name] = keras.models.clone_model(part, clone_function=clone, recursive=True)
        for own, variable in zip(copies[name].variables, part.variables, strict=True):
            own.assign(variable.value)
    regressor = copies.pop("regressor", None)
    copy = replace(network, **copies)
    if regressor is not None:
        copy.__dict__["regressor"] = regressor
    return copy
