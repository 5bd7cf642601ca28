"""The calls on a network, for programs: `import overfeat_tf as of`."""

import numpy as np

from overfeat_tf.models.model import Model
from overfeat_tf.models.predictor import Answers, Images
from overfeat_tf.network.convnet import Network
from overfeat_tf.options import InferenceOptions


def classify(network: Network, images: Images, options: InferenceOptions | None = None) -> Answers:
    """Classify images: see `Model.classify`."""
    return _model(network, options).classify(images)


def localize(network: Network, images: Images, options: InferenceOptions | None = None) -> Answers:
    """Give the top k classes, a box each: see `Model.localize`."""
    return _model(network, options).localize(images)


def detect(network: Network, images: Images, options: InferenceOptions | None = None) -> Answers:
    """Find all objects: see `Model.detect`."""
    return _model(network, options).detect(images)


def extract_features(
    network: Network, images: Images, layer: str | None = None, scale: int | None = None, fine: bool = False
) -> list[np.ndarray]:
    """Compute a layer's output for each image: see `Model.extract_features`."""
    return _model(network, None).extract_features(images, layer, scale, fine)


_models: list[Model] = []  # the last few asked for, so that a loop over images traces once


def _model(network: Network, options: InferenceOptions | None) -> Model:
    options = options or InferenceOptions()
    for model in _models:
        if model.network is network and model.options == options:
            return model
    _models.insert(0, Model(network, tuple(str(i) for i in range(network.num_classes)), options))
    del _models[4:]
    return _models[0]
