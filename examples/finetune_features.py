"""Fine-tune an export's features inside another Keras model, with nothing but TensorFlow and Keras.

    python finetune_features.py saved_models/mine/1 IMAGES --out tuned

IMAGES has a folder of pictures for each class. First a new classifier learns on the features as they are, then the
features learn too, ten times more slowly. The result is a SavedModel of its own, with the new weights inside.
"""

import argparse
from pathlib import Path

import keras
import tensorflow as tf


class Features(keras.layers.Layer):
    """An export's features as a layer: pixels float32 [B, H, W, 3] in 0..255 to a feature map [B, h, w, C].

    `keras.layers.TFSMLayer` would do to run them; no optimizer of Keras takes the names that it gives the weights.
    """

    def __init__(self, exported: Path, **kwargs):
        super().__init__(**kwargs)
        self.features = tf.saved_model.load(exported).features
        # Keras trains, freezes and saves what it finds among a layer's attributes; these are the loaded weights.
        self.tuned = [
            keras.Variable(variable, name=variable.name.partition(":")[0].replace("/", "_"))
            for variable in self.features.trainable_variables
        ]

    def call(self, pixels):
        """Compute the map."""
        return self.features(pixels)


def build(exported: Path, side: int, classes: int) -> tuple[keras.Model, keras.Layer]:
    """Put a new classifier on an export's features; return the model, and the features as its layer."""
    features = Features(exported)
    pixels = keras.Input((side, side, 3))
    pooled = keras.layers.GlobalMaxPooling2D()(features(pixels))
    return keras.Model(pixels, keras.layers.Dense(classes, name="classes")(pooled)), features


def fit(model: keras.Model, pictures, rate: float, epochs: int) -> float:
    """Train what is trainable; return the accuracy in the last epoch."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    return model.fit(pictures, epochs=epochs, verbose=0).history["accuracy"][-1]


def main() -> None:
    """Read the command line, train, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exported", type=Path, help="a version's folder")
    parser.add_argument("images", type=Path, help="a folder with a folder for each class")
    parser.add_argument("--out", type=Path, required=True, help="where the SavedModel goes")
    parser.add_argument("--side", type=int, default=64, help="pixels that images are scaled to")
    parser.add_argument("--epochs", type=int, default=10, help="of each part")
    asked = parser.parse_args()

    size = (asked.side, asked.side)
    pictures = keras.utils.image_dataset_from_directory(asked.images, image_size=size, batch_size=16, seed=0, verbose=0)
    keras.utils.set_random_seed(0)
    model, features = build(asked.exported.resolve(), asked.side, len(pictures.class_names))
    features.trainable = False
    print(f"features as they are: accuracy {fit(model, pictures, 1e-2, asked.epochs):.3f}", flush=True)
    features.trainable = True
    print(f"features fine-tuned: accuracy {fit(model, pictures, 1e-3, asked.epochs):.3f}", flush=True)
    model.export(asked.out, verbose=False)
    print(asked.out)


if __name__ == "__main__":
    main()
