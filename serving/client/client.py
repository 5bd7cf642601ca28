"""A gRPC client for the embedded server and TF Serving, one or several of them."""

import random
import re
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from overfeat_tf.images.files import image_example
from overfeat_tf.models.predictor import Predictor
from overfeat_tf.models.tasks import BY_NAME, CLASSIFICATION
from serving.connections import authorization, open_channel
from serving.tensors import to_tensor

DEFAULT_TIMEOUT_SECONDS = 60.0
_ADDRESS = re.compile(r"^unix:.|[^:]:\d+$")
IN_FLIGHT = 4  # requests a server: it works on one while others are sent, and memory stays bounded
_POLL_SECONDS = 0.2
# Of a server that is away, starting or busy; other errors would repeat. Calls change nothing on a server, so another
# server may get the same request.
_RETRYABLE_CODES = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)
_BACKOFF_SECONDS = (0.2, 0.4, 0.8, 1.6)  # once no server answers
_COOLDOWN_SECONDS = 5.0  # for which a server that did not answer is called only if no other does
_TOO_LARGE = "larger than max"  # gRPC's words, under the code that also means a busy server


class ServingError(Exception):
    """A server's error, in one line.

    Attributes:
        address: the server's HOST:PORT.
        code: the gRPC status code.
        details: the server's message.
    """

    def __init__(self, address: str, code: grpc.StatusCode, details: str | None):
        """Join the lines of the message."""
        self.address = address
        self.code = code
        self.details = " ".join((details or "no details").split())
        super().__init__(f"{address}: {code.name}: {self.details}")

    @property
    def about_the_request(self) -> bool:
        """Whether it is about what was sent, not the server."""
        too_large = self.code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in self.details
        return too_large or self.code is grpc.StatusCode.INVALID_ARGUMENT


class _Server:
    """The connection to one server, how many calls it has and had, and until when it is left alone."""

    def __init__(self, address: str, channel: grpc.Channel):
        self.address, self.channel = address, channel
        prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        self.methods = {**vars(prediction), **vars(models)}
        self.running = self.calls = 0
        self.cooldown_until = 0.0


class Client(Predictor, AbstractContextManager):
    """Calls one model on one server or several; safe to share between threads, and a context manager that closes.

    Each call goes to the server that has the fewest, and has a deadline. Where a server is away or busy, or does not
    answer in time, the call goes to another one, and after pauses to the same again. A predictor's calls raise
    ValueError for an empty list, which TF Serving never answers with batching on, and ServingError where a server
    refused or none answered.
    """

    labels = ()

    def __init__(
        self,
        address: str,
        model: str,
        version: int | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        *,
        label: str | None = None,
        ca_cert: Path | None = None,
        token: str | None = None,
        client_cert: Path | None = None,
        client_key: Path | None = None,
    ):
        """Open the connections, which are made when first needed.

        Args:
            address: HOST:PORT, or several, separated by commas.
            model: the model's name on the server.
            version: its version; the newest when None.
            timeout: the seconds that a call may take on a server, attempts and pauses together.
            label: its version by a label such as `stable`, instead of `version`.
            ca_cert: the PEM file that the server's certificate is checked with; None for a connection without TLS.
            token: what the server asks for, sent as `authorization: Bearer TOKEN`.
            client_cert: the PEM file of this client's own certificate, where it is asked for one.
            client_key: the PEM file of its key.

        Raises:
            ValueError: no address, an unreadable certificate, or a token that would cross a network without TLS.
        """
        self.address = address
        self.model = model
        self.version = version
        self.label = label
        self.timeout = timeout
        addresses = list(dict.fromkeys(each.strip() for each in address.split(",")))
        if not all(_ADDRESS.search(each) for each in addresses):
            raise ValueError(f"expected HOST:PORT, or several separated by commas; got '{address}'")
        for each in addresses:
            self._authorization = authorization(each, token, encrypted=ca_cert is not None)
        self._servers = [_Server(each, open_channel(each, ca_cert, client_cert, client_key)) for each in addresses]
        self._lock, self._closed = threading.Lock(), False
        self.concurrency = IN_FLIGHT * len(self._servers)

    @cached_property
    def tasks(self) -> tuple[str, ...]:  # type: ignore[override] # never set
        """The tasks whose signatures the model has."""
        signatures = self.metadata()
        return tuple(name for name, task in BY_NAME.items() if task.call in signatures)

    def run_signature(self, signature: str, **inputs: Any) -> dict[str, np.ndarray]:
        """Run any signature on arrays, tensors or lists; dimension 0 of each input is the batch.

        Returns:
            The signature's outputs by name; strings as bytes objects.

        Raises:
            ValueError: an input is empty: with batching on, TF Serving never answers it.
            ServingError: the server refused or did not answer.
        """
        request = predict_pb2.PredictRequest(model_spec=self._model_spec(signature))
        for name, value in inputs.items():
            proto = tf.make_tensor_proto(value)
            if any(dim.size == 0 for dim in proto.tensor_shape.dim[:1]):
                raise ValueError(f"input {name} of {signature} is empty; expected at least one image")
            request.inputs[name].CopyFrom(proto)
        response = self._call("Predict", request)
        return {name: to_tensor(proto).numpy() for name, proto in response.outputs.items()}

    def classify_rpc(self, images: Sequence[bytes]) -> list[list[tuple[str, float]]]:
        """Classify encoded images by the Classify RPC; return (label, score) pairs per image, in the model's order.

        Raises:
            ValueError: there is no image.
            ServingError: the server refused or did not answer.
        """
        request = classification_pb2.ClassificationRequest(model_spec=self._model_spec("classify"))
        if not images:
            raise ValueError("expected at least one image, got an empty list")
        request.input.example_list.examples.extend(map(image_example, images))
        response = self._call("Classify", request)
        return [[(each.label, each.score) for each in row.classes] for row in response.result.classifications]

    def metadata(self) -> dict[str, meta_graph_pb2.SignatureDef]:
        """Return the model's signatures, by key.

        Raises:
            ServingError: the server refused or did not answer.
        """
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=self._model_spec(), metadata_field=["signature_def"]
        )
        packed = self._call("GetModelMetadata", request).metadata["signature_def"]
        signatures = get_model_metadata_pb2.SignatureDefMap()
        packed.Unpack(signatures)
        return dict(signatures.signature_def)

    def status(self, timeout: float | None = None, wait_for_ready: bool | None = None) -> dict[int, str]:
        """Return the states of the model's versions (`AVAILABLE`, `LOADING` ...), by number, newest first.

        Args:
            timeout: the seconds that the call may take, if other than the client's.
            wait_for_ready: whether to wait for a server that is not there yet.

        Raises:
            ServingError: the server refused, does not know the model or did not answer.
        """
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=self._model_spec())
        response = self._call("GetModelStatus", request, timeout, wait_for_ready)
        name_of = get_model_status_pb2.ModelVersionStatus.State.Name
        states = {each.version: name_of(each.state) for each in response.model_version_status}
        return dict(sorted(states.items(), reverse=True))

    def wait_until_ready(self, seconds: float) -> None:
        """Wait until the server is there and the model (this client's version of it) is available.

        Raises:
            ServingError: it is not, after so many seconds; the last error.
        """
        deadline = time.monotonic() + seconds
        last: ServingError | None = None
        while True:
            remaining = max(deadline - time.monotonic(), 0.001)
            try:
                states = self.status(timeout=remaining, wait_for_ready=True)
                if "AVAILABLE" in states.values():
                    return
                last = ServingError(self.address, grpc.StatusCode.UNAVAILABLE, f"{self.model} is {states}")
            except ServingError as error:
                # The last attempt may only run out of time; the error of an earlier one says more.
                if last is None or error.code is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    last = error
            if time.monotonic() + _POLL_SECONDS >= deadline:
                why = "nothing answers" if last.code is grpc.StatusCode.DEADLINE_EXCEEDED else last.details
                raise ServingError(self.address, last.code, f"{self.model} is not ready after {seconds:g} s: {why}")
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """Close the connections and cancel running calls."""
        self._closed = True
        for server in self._servers:
            server.channel.close()

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _run(self, signature: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        if signature == CLASSIFICATION.call:
            examples = [image_example(image).SerializeToString() for image in inputs["inputs"]]
            inputs = {"inputs": np.array(examples, object)}
        return self.run_signature(signature, **inputs)

    def _model_spec(self, signature: str = "") -> model_pb2.ModelSpec:
        spec = model_pb2.ModelSpec(name=self.model, signature_name=signature)
        if self.version is not None:
            spec.version.value = self.version
        elif self.label is not None:
            spec.version_label = self.label
        return spec

    def _call(self, method: str, request: Any, timeout: float | None = None, wait_for_ready: bool | None = None) -> Any:
        """Call a server, and others while it is not there; after a pause, as long as there is time, all again."""
        timeout = timeout or self.timeout
        end, pauses = time.monotonic() + timeout, iter(_BACKOFF_SECONDS)
        away: set[_Server] = set()
        while True:
            server = self._take(away)
            try:
                return server.methods[method](
                    request,
                    timeout=max(end - time.monotonic(), 0.001),
                    metadata=self._authorization,
                    wait_for_ready=wait_for_ready,
                )
            except grpc.RpcError as error:
                failure = ServingError(server.address, error.code(), error.details())
                if self._closed or failure.about_the_request or failure.code not in _RETRYABLE_CODES:
                    raise failure from error
            finally:
                with self._lock:
                    server.running -= 1
            now = time.monotonic()
            hung = failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
            server.cooldown_until = now + (timeout if hung else _COOLDOWN_SECONDS)
            away.add(server)
            if len(away) < len(self._servers):
                end = now + timeout if hung else end
                continue
            pause = next(pauses, None)
            if pause is None or now + pause >= end:
                raise failure
            time.sleep(pause * random.uniform(0.8, 1.2))
            away.clear()

    def _take(self, away: set[_Server]) -> _Server:
        """Choose the server for a call: not one that is away, nor one that rests if there is another."""
        now = time.monotonic()
        with self._lock:
            candidates = (server for server in self._servers if server not in away)
            chosen = min(candidates, key=lambda each: (each.cooldown_until > now, each.running, each.calls))
            chosen.running += 1
            chosen.calls += 1
        return chosen
