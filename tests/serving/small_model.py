"""A small model with some of the contract's signatures."""

import numpy as np
import tensorflow as tf


class SmallModel(tf.Module):
    """Answers with the contract's outputs: one box over the whole image, the image's mean brightness as its score."""

    def __init__(self, version: int):
        super().__init__()
        self.version = tf.Variable(float(version))
        names = tf.lookup.KeyValueTensorInitializer(tf.constant([1, 2], tf.int64), ["cat", "dog"])
        self.names = tf.lookup.StaticHashTable(names, "?")

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def detect(self, image_bytes):
        def brightness_and_size(encoded):
            image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
            return tf.reduce_mean(tf.cast(image, tf.float32)) / 255.0, tf.shape(image)[:2]

        scores, sizes = tf.map_fn(brightness_and_size, image_bytes, fn_output_signature=(tf.float32, tf.int32))
        return self._detections(scores, tf.ensure_shape(sizes, [None, 2]))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, "images")])
    def detect_images(self, images):
        scores = tf.reduce_mean(tf.cast(images, tf.float32), [1, 2, 3]) / 255.0
        return self._detections(scores, tf.tile(tf.shape(images)[None, 1:3], [tf.shape(images)[0], 1]))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
    def classify(self, inputs):
        features = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}
        lengths = tf.cast(tf.strings.length(tf.io.parse_example(inputs, features)["image/encoded"]), tf.float32)
        labels = tf.tile(tf.constant([["short", "long"]]), [tf.shape(inputs)[0], 1])
        return {"classes": labels, "scores": tf.stack([1 / lengths, lengths], -1)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "seconds")])
    def spin(self, seconds):
        """Answers after so many seconds."""
        end = tf.timestamp() + tf.cast(tf.reduce_max(seconds), tf.float64)
        (turns,) = tf.while_loop(lambda _: tf.timestamp() < end, lambda n: [n + 1], [tf.constant(0, tf.int64)])
        return {"turns": turns[None]}

    def _detections(self, scores, sizes):
        ones = tf.ones_like(scores)
        classes = (ones * self.version)[:, None]
        return {
            "detection_boxes": tf.tile(tf.constant([[[0.0, 0.0, 1.0, 1.0]]]), [tf.shape(scores)[0], 1, 1]),
            "detection_scores": scores[:, None],
            "detection_classes": classes,
            "num_detections": ones,
            "detection_class_entities": self.names.lookup(tf.cast(classes, tf.int64)),
            "image_size": sizes,
            "status": tf.fill(tf.shape(scores), ""),
        }


def png(value: int = 51, size: tuple[int, int] = (4, 6)) -> bytes:
    """Encodes an image of one grey."""
    return tf.io.encode_png(np.full((*size, 3), value, np.uint8)).numpy()
