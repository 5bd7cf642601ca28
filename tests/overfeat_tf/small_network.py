"""A small random network that finds something, and pictures to show it."""

import io

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from overfeat_tf.network.convnet import build
from overfeat_tf.options import InferenceOptions

LABELS = ("cat", "dog", "bird")
OPTIONS = InferenceOptions(scales=(1, 2, 3), top_k=2, min_score=0.4, max_windows=60, max_detections=12)


def picture(height, width, seed=0):
    """Draw a picture uint8 [height, width, 3] with some structure at every size."""
    cells = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.NEAREST))


def encode(image, form="PNG", **options):
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, form, **options)
    return stream.getvalue()


def standardize(head, outputs, mean, std):
    """Scale a head's last layer so that its outputs [..., D] on some windows have a mean and a deviation."""
    last, outputs = head.layers[-1], outputs.numpy().reshape(-1, outputs.shape[-1])
    factor = std / outputs.std(axis=0)
    last.kernel.assign(last.kernel * factor)
    last.bias.assign(mean - outputs.mean(axis=0) * factor)


@pytest.fixture(scope="module")
def network():
    """Builds a network with random weights, such that windows differ, some are confident, and boxes are boxes."""
    keras.utils.set_random_seed(1)
    network = build("tiny", 3, background=True)
    outputs = network.as_model()(tf.cast(picture(100, 100)[None], tf.float32))
    standardize(network.classifier, outputs["scores"], 0.0, 1.5)
    standardize(network.regressor, outputs["boxes"], np.array([0.2, 0.2, 0.8, 0.8]), 0.15)
    return network
