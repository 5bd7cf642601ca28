"""The exported signatures of the contract, all of which call `overfeat_tf.models.batches`."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import tensorflow as tf

from overfeat_tf.compute.precision import in_bfloat16
from overfeat_tf.images.files import ENCODED_IMAGE_FEATURE
from overfeat_tf.models.model import Model
from overfeat_tf.models.tasks import BY_NAME, CLASSIFICATION
from overfeat_tf.network.convnet import PIXELS
from serving.contract import DEFAULT_KEY, SIGNATURES

# The outputs of a loaded model that is called. Programs for the Object Detection API cut every output to the image's
# `num_detections` detections, which `status`, of one dimension, does not have.
OBJECT_DETECTION = ("detection_boxes", "detection_classes", "detection_scores", "num_detections")

# What batch normalisation and `keras.layers.Normalization` measure, by Keras's names.
STATISTICS = ("moving_mean", "moving_variance", "mean", "variance")


def signature_names(model: Model) -> list[str]:
    """List the contract's signatures that a model has, the default left out."""
    names: list[str] = []
    for task in model.tasks:
        names += BY_NAME[task].signatures
        if task == CLASSIFICATION.name and not model.others:  # a committee's members each have features of their own
            names.append("extract_features")
    return names


class Features(tf.Module):
    """The feature extractor for reuse in other programs: `tf.saved_model.load(...).features`, callable and trainable.

    It is what `keras.layers.TFSMLayer(folder, call_endpoint="features")` wants.

    Attributes:
        variables, trainable_variables: The features' own.
    """

    # Lists in place of tf.Module's properties, which a SavedModel does not keep.
    variables: list[tf.Variable] = []  # noqa: RUF012
    trainable_variables: list[tf.Variable] = []  # noqa: RUF012

    def __init__(self, model: Model):
        super().__init__()
        features = model.network.features
        # A plain function: Keras's own objects, tracked, would be saved with all that they know.
        self._features = lambda pixels: tf.cast(features(pixels, training=False), tf.float32)
        self.variables, self.trainable_variables = _values(features.variables)

    @tf.function(input_signature=PIXELS, autograph=False)
    def __call__(self, pixels: tf.Tensor) -> tf.Tensor:
        """Compute the last feature map before its pooling of pixels float32 [B, H, W, 3] in 0..255."""
        return self._features(pixels)


class ServingModule(tf.Module):
    """The module that is saved; each signature is also an attribute that takes its input by position.

    One that has boxes is itself callable, on pixels uint8 [B, H, W, 3], with the outputs of `OBJECT_DETECTION`, like an
    export of the Object Detection API.

    Attributes:
        features: `Features`.
        variables, trainable_variables: Those of the features, the classifier and the regressor.
    """

    variables: list[tf.Variable] = []  # noqa: RUF012
    trainable_variables: list[tf.Variable] = []  # noqa: RUF012

    def __init__(self, model: Model):
        super().__init__()
        if model.options.arithmetic == "bfloat16":
            model = _stored_in_bfloat16(model)
        self._inference = model.inference
        parts = [part for member in model.networks for part in model.parts_of(member).values()]
        self.variables, self.trainable_variables = _values([each for part in parts for each in part.variables])
        self.features = Features(model)
        names = signature_names(model)
        self._functions = {name: self._function(name) for name in names}
        for name, function in self._functions.items():
            setattr(self, name, function)
        boxes = next((self._functions[name] for name in ("detect_images", "localize_images") if name in names), None)
        if boxes is not None:
            self.__call__ = _for_object_detection(boxes)

    @property
    def default(self) -> str:
        """Name the signature that a request without a name means: of the last task, the most that the model can do.

        Raises:
            ValueError: the model was not trained for anything yet.
        """
        default = next((task.call for task in reversed(BY_NAME.values()) if task.call in self._functions), None)
        if default is None:
            raise ValueError("expected a trained model; this one has finished no stage: run `overfeat train` first")
        return default

    def signatures_to_save(self) -> dict:
        """Return the signatures by name, the default among them.

        Raises:
            ValueError: the model was not trained for anything yet.
        """
        return {**self._functions, DEFAULT_KEY: self._functions[self.default]}

    def _function(self, name: str) -> Callable:
        spec = SIGNATURES[name].input
        body = _classify_examples if name == "classify" else getattr(type(self._inference), name)

        def run(value: tf.Tensor) -> dict[str, tf.Tensor]:
            return body(self._inference, value)

        return tf.function(run, input_signature=[spec], autograph=False)


def _stored_in_bfloat16(model: Model) -> Model:
    """Copy a model with weights of bfloat16, as it is exported: half of a file, and of a server's memory."""
    for network in model.networks:
        model.parts_of(network)  # builds the regressor, where it takes part
    first, *others = map(in_bfloat16, model.networks)
    return replace(model, network=first, others=tuple(others))


def _for_object_detection(boxes: Callable) -> Callable:
    """Narrow the answer of a signature on pixels to what the Object Detection API's programs expect."""

    def run(images: tf.Tensor) -> dict[str, tf.Tensor]:
        answer = boxes(images)
        return {key: answer[key] for key in OBJECT_DETECTION}

    return tf.function(run, input_signature=[SIGNATURES["detect_images"].input], autograph=False)


def _classify_examples(inference, examples: tf.Tensor) -> dict[str, tf.Tensor]:
    """Classify serialized tf.Example [B], for the Classify and the Predict RPC."""
    spec = {ENCODED_IMAGE_FEATURE: tf.io.FixedLenFeature([], tf.string)}
    answer = inference.classify(tf.io.parse_example(examples, spec)[ENCODED_IMAGE_FEATURE])
    return {"classes": answer["classes"], "scores": answer["scores"]}


def _values(variables: Sequence) -> tuple[list[tf.Variable], list[tf.Variable]]:
    """Return the TensorFlow variables of Keras's, all of them and the weights."""
    return [each.value for each in variables], [each.value for each in variables if is_weight(each)]


def is_weight(variable) -> bool:
    """Return whether a variable is a weight, whatever is frozen now: not a statistic, a counter or a seed."""
    return variable.name not in STATISTICS and tf.as_dtype(variable.dtype).is_floating
