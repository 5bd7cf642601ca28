"""OverFeat (Sermanet et al., arXiv 1312.6229) on TensorFlow and Keras: one ConvNet classifies, localizes, detects."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from overfeat_tf.models.loading import Exported, load
    from overfeat_tf.models.model import Model, classify, detect, extract_features, localize
    from overfeat_tf.network.convnet import Network, build
    from overfeat_tf.options import InferenceOptions

__all__ = [
    "Exported",
    "InferenceOptions",
    "Model",
    "Network",
    "build",
    "classify",
    "detect",
    "extract_features",
    "load",
    "localize",
]

_HOMES = {
    "models.loading": ("Exported", "load"),
    "models.model": ("Model", "classify", "detect", "extract_features", "localize"),
    "network.convnet": ("Network", "build"),
    "options": ("InferenceOptions",),
}


def __getattr__(name: str):
    """Import a public name when it is first used: `overfeat --help` does not wait for TensorFlow."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"overfeat_tf.{home}"), name)
    raise AttributeError(f"module 'overfeat_tf' has no attribute '{name}'")
