"""Check of a running server: ready, the contract's signatures, an answer from each, and latency."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from overfeat_tf.images.files import image_example
from serving.client.client import Client, ServingError
from serving.contract import DEFAULT_KEY, SIGNATURES, Signature, contract_key, differences
from serving.errors import reason

_READY_SECONDS = 10.0
_IMAGE_SIZE = 256


@dataclass
class CheckReport:
    """The result of a check.

    Attributes:
        address: the server's HOST:PORT.
        model: the model's name.
        versions: its versions' states, by number.
        signatures: the keys that the server offers, the contract's and others.
        failures: a line for each failure; empty if there is none.
        timed: the signature whose latency was measured, or None if none could be.
        requests: how many requests were timed, one after the other, one image each.
        p50_ms: the median latency in milliseconds, seen from the client.
        p95_ms: the 95th percentile.
    """

    address: str
    model: str
    versions: dict[int, str] = field(default_factory=dict)
    signatures: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    timed: str | None = None
    requests: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None

    @property
    def ok(self) -> bool:
        """Return whether nothing failed."""
        return not self.failures

    def lines(self) -> list[str]:
        """Format the report for people."""
        states = ", ".join(f"{number} {state}" for number, state in self.versions.items()) or "none"
        lines = [
            f"{self.model} at {self.address}",
            f"  versions    {states}",
            f"  signatures  {', '.join(self.signatures) or 'none'}",
        ]
        if self.p50_ms is not None and self.p95_ms is not None:
            speed = f"p50 {self.p50_ms:.1f} ms, p95 {self.p95_ms:.1f} ms ({self.requests} requests of one image)"
            lines.append(f"  {self.timed}  {speed}")
        lines += [f"  FAILED  {failure}" for failure in self.failures]
        return [*lines, "  all checks passed" if self.ok else f"  {len(self.failures)} failed"]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {"ok": self.ok} | asdict(self) | {"versions": {str(n): state for n, state in self.versions.items()}}


def check(
    address: str,
    model: str,
    image_bytes: bytes | None = None,
    requests: int = 20,
    ready_seconds: float = _READY_SECONDS,
    **options: Any,
) -> CheckReport:
    """Check a model on a server against the contract; failures are listed in the report, not raised.

    Args:
        address: the server's HOST:PORT.
        model: the model's name there.
        image_bytes: the encoded image to send; by default a small one is made.
        requests: how many requests to time.
        ready_seconds: how long to wait for a server that is starting.
        **options: see Client.

    Raises:
        ValueError: several addresses, of which only some would be checked.
    """
    if "," in address:
        raise ValueError(f"expected one HOST:PORT to check; got '{address}'")
    report = CheckReport(address, model)
    image_bytes = image_bytes or make_image()
    with Client(address, model, **options) as client:
        try:
            client.wait_until_ready(ready_seconds)
            report.versions = client.status()
            found = client.metadata()
        except ServingError as error:
            report.failures.append(str(error))
            return report
        report.signatures = sorted(key for key in found if not key.startswith("__"))
        passed = []
        for key, signature in _agreed_signatures(found):
            failures = differences(signature, found[key]) or list(_answer_failures(client, key, signature, image_bytes))
            report.failures += [f"{key}: {failure}" for failure in failures]
            if not failures:
                passed.append((key, signature))
        if DEFAULT_KEY in found and contract_key(found[DEFAULT_KEY]) is None:
            report.failures.append(f"{DEFAULT_KEY}: expected the inputs and outputs of a signature of the contract")
        if not any(key in SIGNATURES for key in found):
            report.failures.append(
                f"expected at least one signature of {', '.join(SIGNATURES)}; got {', '.join(report.signatures)}"
            )
        _measure(client, report, dict(passed), image_bytes, requests)
    return report


def make_image() -> bytes:
    """Make a small JPEG of a bright square on a gradient."""
    ramp = np.linspace(0, 128, _IMAGE_SIZE, dtype=np.uint8)
    image = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], np.uint8(64)), axis=-1)
    image[_IMAGE_SIZE // 4 : _IMAGE_SIZE // 2, _IMAGE_SIZE // 4 : _IMAGE_SIZE // 2] = 255
    return tf.io.encode_jpeg(image).numpy()


def _agreed_signatures(found: Mapping[str, Any]) -> Iterator[tuple[str, Signature]]:
    """Pair the keys of a server with the contract's signatures; the default has the signature of another key."""
    yield from ((key, SIGNATURES[key]) for key in SIGNATURES if key in found)
    twin = contract_key(found[DEFAULT_KEY]) if DEFAULT_KEY in found else None
    if twin:
        yield DEFAULT_KEY, SIGNATURES[twin]


def _input_value(signature: Signature, image_bytes: bytes) -> np.ndarray:
    """Make the input of a signature, a batch of one, from an encoded image."""
    if signature.input.dtype == tf.uint8:
        return tf.io.decode_image(image_bytes, channels=3, expand_animations=False).numpy()[None]
    is_example = signature is SIGNATURES["classify"]
    return np.array([image_example(image_bytes).SerializeToString() if is_example else image_bytes], object)


def _answer_failures(client: Client, key: str, signature: Signature, image_bytes: bytes) -> Iterator[str]:
    """Send one request and compare its answer with the contract; `classify` is called by both its RPCs."""
    try:
        outputs = client.run_signature(key, **{signature.input.name: _input_value(signature, image_bytes)})
        labels = client.classify_rpc([image_bytes]) if key == "classify" else None
    except tf.errors.OpError as error:
        yield f"the image to send cannot be decoded: {reason(error.message)}"
        return
    except ServingError as error:
        yield str(error)
        return
    for name, spec in signature.outputs.items():
        if name not in outputs:
            yield f"the answer lacks {name}"
        elif tf.as_dtype(outputs[name].dtype) != spec.dtype:
            yield f"the answer's {name} is {outputs[name].dtype}, expected {spec.dtype.name}"
        elif not spec.shape.is_compatible_with(outputs[name].shape) or outputs[name].shape[0] != 1:
            yield f"the answer's {name} has shape {outputs[name].shape} for one image, expected {spec.shape}"
        elif name == "status" and outputs[name][0]:
            yield f"the image was not read: {outputs[name][0].decode('utf-8', 'replace')}"
    if labels is not None and len(labels) != 1:
        yield f"the Classify RPC answered one image with {len(labels)} classifications"


def _measure(
    client: Client, report: CheckReport, passed: Mapping[str, Signature], image_bytes: bytes, requests: int
) -> None:
    """Time requests of one image: of detect, else the default, else the first that answers."""
    key = next((key for key in ("detect", DEFAULT_KEY, *passed) if key in passed), None)
    if key is None or requests < 1:
        return
    value = {passed[key].input.name: _input_value(passed[key], image_bytes)}
    milliseconds = []
    try:
        for _ in range(requests):
            begin = time.perf_counter()
            client.run_signature(key, **value)
            milliseconds.append((time.perf_counter() - begin) * 1000)
    except ServingError as error:
        report.failures.append(f"{key}: after {len(milliseconds)} of {requests} requests: {error}")
        return
    report.timed, report.requests = key, requests
    report.p50_ms, report.p95_ms = (float(p) for p in np.percentile(milliseconds, [50, 95]))
