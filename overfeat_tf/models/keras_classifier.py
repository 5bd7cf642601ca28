"""A Keras classifier as a run: its backbone, global pooling and dense layer, computed densely at several scales (3.3).

Averaging a map and then taking a dense layer is what each window of a dense scan does: the average over a window's
cells at every place, then the dense layer as a 1 x 1 convolution. At the classifier's own input size the only window's
scores are the classifier's. So a classifier of 224 pixels at a stride of 32 has windows of 224 pixels, 32 apart.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from overfeat_tf.models.model import Model, require_new
from overfeat_tf.models.release_weights import read_names
from overfeat_tf.models.tasks import CLASSIFICATION
from overfeat_tf.network.convnet import build
from overfeat_tf.network.pretrained import averaged, classifier_preset, open_model

if TYPE_CHECKING:
    import keras


def import_keras(file: Path, labels: Path, run: Path, side: int | None = None) -> None:
    """Convert a Keras classifier into a run's folder, trained for classification.

    Args:
        file: A `.keras` file of a model from pixels [B, H, W, 3], 0..255, to [B, classes], by global average pooling
            and one dense layer.
        labels: The class names in the order of its outputs, a line each.
        run: The run's folder, new or empty.
        side: Side in pixels of the images that it was trained on; by default its input's, or 224.

    Raises:
        ValueError: the folder holds something, the model is of another kind, or there are not as many labels; before
            anything is written.
    """
    require_new(run)
    model = open_model(str(file), "imagenet")
    pooling, dense = _ending(model, str(file))
    backbone, cut = averaged(model, pooling.input, str(file), side)
    names = read_names(labels)
    if len(names) != dense.units:
        raise ValueError(f"expected {dense.units} class names in '{labels}', a line each; got {len(names)}")
    network = build(classifier_preset(backbone), len(names), weights=None)
    network.backbone.set_weights(cut.get_weights())
    kernel, *bias = dense.get_weights()
    network.classifier.set_weights([kernel[None, None], bias[0] if bias else np.zeros(dense.units, np.float32)])
    training = {
        "name": "import-keras",
        "data": "as the file's authors had it",
        "file": file.name,
        "labels": labels.name,
    }
    Model(network, names, tasks=(CLASSIFICATION.name,)).save(run, training)


def _ending(model: "keras.Model", name: str) -> "tuple[keras.Layer, keras.layers.Dense]":
    """Return the global average pooling and the dense layer that a classifier ends with.

    Raises:
        ValueError: it ends otherwise.
    """
    import keras

    known = (keras.activations.linear, keras.activations.softmax)
    rows = [row for row in model.layers if not isinstance(row, keras.layers.Dropout | keras.layers.Softmax)]
    if isinstance(rows[-1], keras.layers.Activation) and rows[-1].activation in known:
        rows.pop()
    *_, pooling, dense = [None, None, *rows]
    if (
        not isinstance(pooling, keras.layers.GlobalAveragePooling2D)
        or not isinstance(dense, keras.layers.Dense)
        or dense.activation not in known
    ):
        found = ", ".join(row.name for row in model.layers[-3:])
        raise ValueError(
            f"expected a classifier in '{name}' that ends with GlobalAveragePooling2D and one Dense layer, linear or "
            f"softmax; its last layers are {found}: start from it with --backbone"
        )
    return pooling, dense
