"""The contract: names, dtypes and shapes of the inputs and outputs of every signature.

The export, the warm-up requests, the embedded server and `overfeat check` use this table.
Dimension 0 is the batch everywhere, of any size. N is the number of detections, K and C the number of classes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from serving.tensors import dtype_name, shape_text

# The signature that a request without a name means (TensorFlow's own constant).
DEFAULT_KEY = "serving_default"


@dataclass(frozen=True)
class Signature:
    """A signature: its only input and its outputs by name; every shape begins with the batch."""

    input: tf.TensorSpec
    outputs: Mapping[str, tf.TensorSpec]


def _signature(input_spec: tf.TensorSpec, *outputs: tf.TensorSpec) -> Signature:
    return Signature(input_spec, MappingProxyType({spec.name: spec for spec in outputs}))


_IMAGE_BYTES = tf.TensorSpec([None], tf.string, "image_bytes")
_IMAGES = tf.TensorSpec([None, None, None, 3], tf.uint8, "images")
_EXAMPLES = tf.TensorSpec([None], tf.string, "inputs")

# The names of the TensorFlow Object Detection API, whose clients read this server unchanged: hence classes and counts
# as floats.
_DETECTIONS = (
    tf.TensorSpec([None, None, 4], tf.float32, "detection_boxes"),  # yxyx, normalised to the image as displayed
    tf.TensorSpec([None, None], tf.float32, "detection_scores"),  # falling
    tf.TensorSpec([None, None], tf.float32, "detection_classes"),  # 1-based, 0 = padding
    tf.TensorSpec([None], tf.float32, "num_detections"),
    tf.TensorSpec([None, None], tf.string, "detection_class_entities"),
    tf.TensorSpec([None, 2], tf.int32, "image_size"),  # height, width
    tf.TensorSpec([None], tf.string, "status"),  # empty where the image was read, else why not
)

SIGNATURES: Mapping[str, Signature] = MappingProxyType(
    {
        "detect": _signature(_IMAGE_BYTES, *_DETECTIONS),
        "detect_images": _signature(_IMAGES, *_DETECTIONS),
        "localize": _signature(_IMAGE_BYTES, *_DETECTIONS),
        "localize_images": _signature(_IMAGES, *_DETECTIONS),
        "classify": _signature(
            _EXAMPLES,
            tf.TensorSpec([None, None], tf.string, "classes"),
            tf.TensorSpec([None, None], tf.float32, "scores"),
        ),
        "classify_images": _signature(
            _IMAGES,
            tf.TensorSpec([None, None], tf.float32, "logits"),
            tf.TensorSpec([None, None], tf.float32, "probs"),
        ),
        "extract_features": _signature(_IMAGES, tf.TensorSpec([None, None, None, None], tf.float32, "features")),
    }
)


def differences(expected: Signature, found: meta_graph_pb2.SignatureDef) -> list[str]:
    """List the differences between a SavedModel's signature and the contract, a line each.

    Shapes are compared where both sides know them; the batch of the input must be free.
    """
    return [
        *_tensor_differences("input", {expected.input.name: expected.input}, found.inputs),
        *_tensor_differences("output", expected.outputs, found.outputs),
        *_fixed_batch(expected, found),
    ]


def contract_key(found: meta_graph_pb2.SignatureDef) -> str | None:
    """Return the first key of the contract with the inputs and outputs of `found`, or None."""
    return next((key for key, expected in SIGNATURES.items() if not differences(expected, found)), None)


def _tensor_differences(
    kind: str, expected: Mapping[str, tf.TensorSpec], found: Mapping[str, meta_graph_pb2.TensorInfo]
) -> Iterator[str]:
    for name in sorted(expected.keys() - found.keys()):
        yield f"{kind} {name} is missing; found {', '.join(sorted(found)) or 'none'}"
    for name in sorted(found.keys() - expected.keys()):
        yield f"{kind} {name} is not in the contract; expected {', '.join(expected)}"
    for name in sorted(expected.keys() & found.keys()):
        spec, info = expected[name], found[name]
        if info.dtype != spec.dtype.as_datatype_enum:
            yield f"{kind} {name} is {dtype_name(info.dtype)}, expected {dtype_name(spec.dtype.as_datatype_enum)}"
        elif not tf.TensorShape(info.tensor_shape).is_compatible_with(spec.shape):
            shapes = shape_text(info.tensor_shape), shape_text(spec.shape.as_proto())
            yield f"{kind} {name} has shape {shapes[0]}, expected {shapes[1]}"


def _fixed_batch(expected: Signature, found: meta_graph_pb2.SignatureDef) -> Iterator[str]:
    name = expected.input.name
    dims = found.inputs[name].tensor_shape.dim if name in found.inputs else ()
    if dims and dims[0].size >= 0:
        yield f"input {name} has its batch fixed at {dims[0].size}, expected any batch size"
