"""Hostile requests, and what a server answers: wrong messages, damaged images, small files that declare many pixels.

The requests are seeded: the same number gives the same request.
"""

import base64
import http.client
import json
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import classification_pb2, inference_pb2, predict_pb2

from overfeat_tf.cli.benchmarks.harness import markdown_table
from overfeat_tf.images.files import ENCODED_IMAGE_FEATURE

SERVER_MEGABYTES = 4  # the server's limit; an oversized request has one more
SENDERS = 8
BATCH = 100  # calls in memory at a time
TIMEOUT_SECONDS = 120.0
_PREDICTION = "/tensorflow.serving.PredictionService/"
# Statuses that name the client's mistake; any other one is the server's fault. UNAVAILABLE and 503 are not here: eight
# senders do not fill the queue, and a server that has crashed gives the same status.
EXPECTED_STATUSES = frozenset(
    {
        *("OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED"),
        *("200", "400", "404", "405", "413", "501"),
    }
)
# The response of the gRPC library where bytes are not a message; the server's code does not run.
_NO_MESSAGE = "Exception deserializing request!"


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
        request = self._with_image(self._images[0])
        name = "".join(map(chr, rng.integers(32, 0x2FF, 1 + rng.integers(2000))))
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
        sizes = rng.choice([-1, 0, 1, 2, 3, 1000, 2**31, 2**62], rng.choice([0, 1, 2, 3, 4, 300])).tolist()
        if rng.integers(2):
            return "Predict", self._with(tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[b"x"]), *sizes)
        pixels = tensor_pb2.TensorProto(dtype=types_pb2.DT_UINT8, int_val=[1])
        return "Predict", self._with(pixels, *sizes, name="images", signature="detect_images")

    def _noise_as_example(self, rng: np.random.Generator) -> tuple[str, Any]:
        return "Predict", self._with(tf.make_tensor_proto([noise(rng, 100)]), name="inputs", signature="classify")

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

    def _with(
        self, tensor: tensor_pb2.TensorProto, *sizes: int, name: str = "", signature: str = ""
    ) -> predict_pb2.PredictRequest:
        """Make a request with a tensor of some shape, by default for the input and signature of the valid request."""
        request = predict_pb2.PredictRequest(model_spec=self._good.model_spec)
        request.model_spec.signature_name = signature or self._good.model_spec.signature_name
        request.inputs[name or self._input].CopyFrom(tensor)
        for size in sizes:
            request.inputs[name or self._input].tensor_shape.dim.add(size=size)
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


@dataclass
class Outcome:
    """The responses to the requests.

    Attributes:
        statuses: The count of each status, by kind of request.
        failures: A line for each request with an unexpected status, or without a response.
    """

    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of requests."""
        return sum(counter.total() for counter in self.statuses.values())

    def table(self) -> str:
        """Render the statuses in Markdown."""
        rows = [
            (kind, ", ".join(f"{status} {count}" for status, count in counter.most_common()))
            for kind, counter in sorted(self.statuses.items())
        ]
        return markdown_table(("hostile requests", "responses"), rows)


def attack(address: str, rest: str, calls: Iterable[Call]) -> Outcome:
    """Send calls to a server, several at a time.

    Args:
        address: HOST:PORT of gRPC.
        rest: HOST:PORT of REST.
        calls: The calls.
    """
    outcome = Outcome()
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(address, options=options) as channel, futures.ThreadPoolExecutor(SENDERS) as senders:

        def send(call: Call) -> tuple[Call, str, bool]:
            return call, *(_send_rest(rest, call) if call.target.startswith("/") else _send_grpc(channel, call))

        stream = iter(calls)
        while batch := list(islice(stream, BATCH)):
            for call, status, expected in senders.map(send, batch):
                outcome.statuses.setdefault(call.kind, Counter())[status] += 1
                if not expected:
                    outcome.failures.append(f"{call.kind}: {status}")
    return outcome


def _send_grpc(channel: grpc.Channel, call: Call) -> tuple[str, bool]:
    # The generated stubs send only valid messages; a bare method sends any bytes.
    method = channel.unary_unary(_PREDICTION + call.target)
    try:
        response = method(call.body, timeout=TIMEOUT_SECONDS)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.INTERNAL and error.details() == _NO_MESSAGE:
            return "INTERNAL of gRPC: no message", True
        status = error.code().name
        return (status, True) if status in EXPECTED_STATUSES else (f"{status} {error.details()}", False)
    outputs = predict_pb2.PredictResponse.FromString(response).outputs if call.target == "Predict" else {}
    read = "status" not in outputs or not any(outputs["status"].string_val)
    return "OK" if read else "OK with the status of an image not read", not (read and call.kind == "bomb")


def _send_rest(address: str, call: Call) -> tuple[str, bool]:
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("POST", call.target, call.body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        return str(response.status), str(response.status) in EXPECTED_STATUSES
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__} {error}", False
    finally:
        connection.close()
