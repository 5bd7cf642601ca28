"""OverFeat (Sermanet et al., arXiv 1312.6229) on TensorFlow and Keras: one ConvNet classifies, localizes, detects.

import overfeat_tf as of
network = of.build("accurate", num_classes=1000)        # Keras models: .features, .classifier, .regressor
model, history = of.train("finetune", "voc:DIR")        # what `overfeat train` does
model = of.load("runs/finetune")                        # or a SavedModel
model.predict("photo.jpg")
of.datasets.open("voc:DIR").batches("detection", network, "voc")
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from overfeat_tf.models.loading import Exported, load
    from overfeat_tf.models.model import Model, classify, detect, extract_features, localize
    from overfeat_tf.models.prediction import Prediction
    from overfeat_tf.network.convnet import Network, build
    from overfeat_tf.options import InferenceOptions
    from training import datasets
    from training.fit.train import train
    from training.recipes import Recipe, get_recipe

__version__ = "0.1.0"

__all__ = [
    "Exported",
    "InferenceOptions",
    "Model",
    "Network",
    "Prediction",
    "Recipe",
    "build",
    "classify",
    "datasets",
    "detect",
    "extract_features",
    "get_recipe",
    "load",
    "localize",
    "train",
]

_HOMES = {
    "overfeat_tf.models.loading": ("Exported", "load"),
    "overfeat_tf.models.model": ("Model", "classify", "detect", "extract_features", "localize"),
    "overfeat_tf.models.prediction": ("Prediction",),
    "overfeat_tf.network.convnet": ("Network", "build"),
    "overfeat_tf.options": ("InferenceOptions",),
    # Above this package: the one place beside the command line that imports upward, when they are first used.
    "training.datasets": ("datasets",),
    "training.fit.train": ("train",),
    "training.recipes": ("Recipe", "get_recipe"),
}


def __getattr__(name: str):
    """Import a public name when it is first used: `overfeat --help` does not wait for TensorFlow."""
    for home, names in _HOMES.items():
        if name in names:
            if home.startswith("training."):
                require_own_packages()
            module = import_module(home)
            return module if name == "datasets" else getattr(module, name)
    raise AttributeError(f"module 'overfeat_tf' has no attribute '{name}'")


def require_own_packages() -> None:
    """Raise ImportError, naming the file, where Python finds another `training` or `serving` before ours.

    The two lie beside this package, and ordinary files have such names.
    """
    for name in ("training", "serving"):
        try:
            spec = find_spec(name)
            found = (spec.origin or next(iter(spec.submodule_search_locations or [name]))) if spec else None
        except ValueError:  # a module without a specification, as tests and notebooks make them
            found = getattr(sys.modules[name], "__file__", None) or name
        if found and not Path(found).resolve().is_relative_to(Path(__file__).resolve().parents[1] / name):
            raise ImportError(
                f"expected overfeat_tf's own package '{name}'; '{found}' comes first and has its name: rename it, or "
                "start Python from another folder"
            )


def __dir__() -> list[str]:
    """List the public names."""
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])


if "keras" in sys.modules:  # its saved models may name our layers, which register when they are imported
    import_module("overfeat_tf.network.convnet")
