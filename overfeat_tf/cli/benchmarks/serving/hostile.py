"""Hostile requests: wrong messages, damaged images, and small files that declare billions of pixels.

They are seeded: the same number gives the same request.
"""

import base64
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import classification_pb2, inference_pb2, predict_pb2

from overfeat_tf.images.files import ENCODED_IMAGE_FEATURE

SERVER_MEGABYTES = 4  # the server's limit; an oversized request has one more


class Call(NamedTuple):
    """A request to a gRPC method or to a REST path.

    Attributes:
        kind: What is wrong with it.
        target: The method's name, or the path if it starts with a slash.
        body: The message in bytes.
    """

    kind: str
    target: str
    body: bytes


class HostileRequests:
    """Makes hostile calls from a valid request.

    Args:
        good: A request with one encoded image for a served model.
        image: The image, JPEG.
    """

    def __init__(self, good: predict_pb2.PredictRequest, image: bytes):
        self._good = good
        (self._input,) = good.inputs
        pixels = tf.io.decode_image(image, channels=3, expand_animations=False).numpy()[:64, :64]
        self._images = [encode(pixels).numpy() for encode in (tf.io.encode_jpeg, tf.io.encode_png)]
        self._kinds: Sequence[Callable[[np.random.Generator], tuple[str, Any]]] = (
            self._noise_as_message,
            self._mutated_message,
            self._noise_as_image,
            self._truncated_image,
            self._mutated_image,
            self._bomb,
            self._wrong_name,
            self._wrong_dtype,
            self._wrong_shape,
            self._noise_as_example,
            self._wrong_example,
            self._rest_noise,
            self._rest_json,
        )

    def call(self, number: int) -> Call:
        """Make the call of that number. The kinds alternate, and one call in 100 is oversized."""
        rng = np.random.default_rng(number)
        make = self._oversized if number % 100 == 99 else self._kinds[number % len(self._kinds)]
        target, body = make(rng)
        data = body if isinstance(body, bytes) else body.SerializeToString()
        return Call(make.__name__.strip("_").replace("_", " "), target, data)

    def _noise_as_message(self, rng: np.random.Generator) -> tuple[str, Any]:
        return str(rng.choice(["Predict", "Classify", "MultiInference", "GetModelMetadata"])), noise(rng, 400)

    def _mutated_message(self, rng: np.random.Generator) -> tuple[str, Any]:
        return "Predict", mutate(self._with_image(self._images[0]).SerializeToString(), rng)

    def _noise_as_image(self, rng: np.random.Generator) -> tuple[str, Any]:
        start = rng.choice([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF\0\1\0\0WEBP"])
        return "Predict", self._with_image(bytes(start) + noise(rng, 2000))

    def _truncated_image(self, rng: np.random.Generator) -> tuple[str, Any]:
        image = self._images[rng.integers(2)]
        return "Predict", self._with_image(image[: rng.integers(len(image))])

    def _mutated_image(self, rng: np.random.Generator) -> tuple[str, Any]:
        return "Predict", self._with_image(mutate(self._images[rng.integers(2)], rng))

    def _bomb(self, rng: np.random.Generator) -> tuple[str, Any]:
        side = int(rng.choice([20_000, 60_000, 2**31 - 1]))
        return "Predict", self._with_image([png, gif, bmp][rng.integers(3)](side))

    def _wrong_name(self, rng: np.random.Generator) -> tuple[str, Any]:
        request, name = (
            self._with_image(self._images[0]),
            "".join(map(chr, rng.integers(32, 0x2FF, 1 + rng.integers(2000)))),
        )
        match rng.integers(6):
            case 0:
                request.model_spec.name = name
            case 1:
                request.model_spec.signature_name = name
            case 2:
                request.model_spec.version.value = int(rng.integers(-(2**62), 2**62))
            case 3:
                request.model_spec.version_label = name
            case 4:
                request.inputs[name].CopyFrom(request.inputs[self._input])
            case _:
                request.output_filter.append(name)
        return "Predict", request

    def _wrong_dtype(self, rng: np.random.Generator) -> tuple[str, Any]:
        dtype = int(rng.choice([*types_pb2.DataType.values(), 77]))
        values = {"tensor_content": noise(rng, 64)} if rng.integers(2) else {"float_val": [0.5]}
        return "Predict", self._with(tensor_pb2.TensorProto(dtype=dtype, **values), 1)  # type: ignore[arg-type]

    def _wrong_shape(self, rng: np.random.Generator) -> tuple[str, Any]:
        sizes = rng.choice([-1, 0, 1, 2, 3, 1000, 2**31, 2**62], rng.choice([0, 1, 2, 3, 4, 300]))
        dtype, key = (
            (tf.string, self._good.model_spec.signature_name) if rng.integers(2) else (tf.uint8, "detect_images")
        )
        values: dict = {"string_val": [b"x"]} if dtype == tf.string else {"int_val": [1]}
        request = self._with(tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum, **values), *sizes.tolist())
        if key == "detect_images":
            request.inputs["images"].CopyFrom(request.inputs[self._input])
            del request.inputs[self._input]
        request.model_spec.signature_name = key
        return "Predict", request

    def _noise_as_example(self, rng: np.random.Generator) -> tuple[str, Any]:
        request = self._with_image(noise(rng, 100))
        request.inputs["inputs"].CopyFrom(request.inputs[self._input])
        if self._input != "inputs":
            del request.inputs[self._input]
        request.model_spec.signature_name = "classify"
        return "Predict", request

    def _wrong_example(self, rng: np.random.Generator) -> tuple[str, Any]:
        spec = {"name": self._good.model_spec.name, "signature_name": "classify"}
        features = [{"bytes_list": {"value": [noise(rng, 100)]}}, {"float_list": {"value": [0.5]}}, {}]
        feature = {ENCODED_IMAGE_FEATURE if rng.integers(2) else "x": features[rng.integers(3)]}
        examples = {"example_list": {"examples": [{"features": {"feature": feature}}]}}
        if rng.integers(2):
            return "Classify", classification_pb2.ClassificationRequest(model_spec=spec, input=examples)
        method = str(rng.choice(["tensorflow/serving/classify", "tensorflow/serving/regress", "x"]))
        tasks = [{"model_spec": spec, "method_name": method}] * int(rng.integers(3))
        return "MultiInference", inference_pb2.MultiInferenceRequest(tasks=tasks, input=examples)

    def _rest_noise(self, rng: np.random.Generator) -> tuple[str, Any]:
        paths = [self._rest_path(), "/v1/models/nobody:predict", "/v1/models/%ff%00/versions/x:predict", "/..%2f", "/"]
        return str(rng.choice(paths)), noise(rng, 2000)

    def _rest_json(self, rng: np.random.Generator) -> tuple[str, Any]:
        image = base64.b64encode(mutate(self._images[0], rng)).decode()
        good = {"signature_name": self._good.model_spec.signature_name, "instances": [{"b64": image}]}
        depth = int(rng.integers(1, 5000))
        bodies = [
            json.dumps(good),
            mutate(json.dumps(good).encode(), rng).decode("latin-1"),
            "[" * depth + "]" * depth,
            json.dumps(good | {"instances": [{"b64": "%%%"}, 1e308, None, {"x": [[]]}]}),
            '{"instances": [' + "9" * depth + "]}",
            json.dumps({"inputs": {"images": np.zeros([2, 2, int(rng.integers(5))]).tolist()}}),
        ]
        return self._rest_path(), bodies[rng.integers(len(bodies))].encode()

    def _oversized(self, rng: np.random.Generator) -> tuple[str, Any]:
        data = bytes(SERVER_MEGABYTES + 1 << 20)
        target = str(rng.choice(["Predict", self._rest_path()]))
        return target, self._with_image(data) if target == "Predict" else data

    def _rest_path(self) -> str:
        return f"/v1/models/{self._good.model_spec.name}:predict"

    def _with_image(self, image: bytes) -> predict_pb2.PredictRequest:
        return self._with(tf.make_tensor_proto([image]))

    def _with(self, tensor: tensor_pb2.TensorProto, *sizes: int) -> predict_pb2.PredictRequest:
        request = predict_pb2.PredictRequest()
        request.CopyFrom(self._good)
        request.inputs[self._input].CopyFrom(tensor)
        for size in sizes:
            request.inputs[self._input].tensor_shape.dim.add(size=size)
        return request


def noise(rng: np.random.Generator, most: int) -> bytes:
    """Return at most `most` random bytes."""
    return rng.bytes(int(rng.integers(most + 1)))


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Change 1 to 16 bytes."""
    changed = np.frombuffer(data, np.uint8).copy()
    places = rng.integers(0, len(changed), rng.integers(1, 17))
    changed[places] = rng.integers(0, 256, len(places))
    return changed.tobytes()


def png(side: int) -> bytes:
    """Return a PNG that declares side x side pixels and holds the first few."""
    pixels = zlib.compress(bytes(1 << 20), 9)
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def gif(side: int) -> bytes:
    """Return a GIF that declares side x side pixels, or as many as the format allows."""
    size = struct.pack("<HH", min(side, 65535), min(side, 65535))
    frame = b"," + bytes(4) + size + b"\0" + b"\x02\x02\x4c\x01\0"
    return b"GIF89a" + size + b"\x80\0\0" + bytes(6) + frame + b";"


def bmp(side: int) -> bytes:
    """Return a BMP that declares side x side pixels and holds none."""
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
