"""What the serving benchmark serves, and the real server in a process of its own."""

import io
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import tensorflow as tf
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc, predict_pb2

from overfeat_tf.models.model import Model
from overfeat_tf.network.convnet import build
from overfeat_tf.network.presets import get_preset
from serving.contract import image_example
from serving.export.exporter import export
from serving.version_folders import find_versions, read_signature_defs

CLASSES = 20  # Pascal VOC's
_ASKED = ("detect", "localize", "classify")  # the first that a model has
_START_SECONDS = 600.0
SERVING = re.compile(r" serving .* on (\S+)$")  # what the server says once it does, after the time and the level


def photograph() -> bytes:
    """Encode a real photograph of 427 x 640 pixels as JPEG."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    file = io.BytesIO()
    Image.fromarray(load_sample_images().images[0]).save(file, "JPEG", quality=90)
    return file.getvalue()


def export_preset(name: str, folder: Path) -> Path:
    """Export a preset with random weights, for all tasks, as `folder`/NAME/1; return `folder`/NAME.

    The weights are scaled so that activations have a trained network's size: the paper's own initial ones leave next
    to nothing of an image, and denormal numbers take their own time.
    """
    network = build(replace(get_preset(name), init_std=None), CLASSES, background=True)
    export(Model(network, tuple(f"class {number}" for number in range(CLASSES))), folder / name)
    return folder / name


def copy_newest(model_dir: Path, folder: Path) -> Path:
    """Copy a model's newest version as `folder`/NAME/1, to be served and changed there; return `folder`/NAME."""
    found = find_versions(model_dir)
    shutil.copytree(found[max(found)], folder / model_dir.name / "1")
    return folder / model_dir.name


def detection_request(model_dir: Path, image: bytes, images: int = 1) -> predict_pb2.PredictRequest:
    """Request the first of detect, localize and classify that version 1 has, with an image repeated so many times."""
    signatures = read_signature_defs(model_dir / "1")
    key = next((key for key in _ASKED if key in signatures), None)
    if key is None:
        raise ValueError(f"expected a model with a signature of {', '.join(_ASKED)}; got {', '.join(signatures)}")
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model_dir.name, key
    (name,) = signatures[key].inputs
    data = image_example(image).SerializeToString() if key == "classify" else image
    request.inputs[name].CopyFrom(tf.make_tensor_proto([data] * images))
    return request


class ServerProcess:
    """Runs `overfeat serve` on free ports, from the start of a `with` block until its end.

    Attributes:
        address, rest: HOST:PORT of gRPC and of REST.
        start_seconds: from the start of the process to the open port.
        loading: what the server said of loading and warming up, in words.
    """

    def __init__(self, model_dir: Path, *options: str):
        self._model = model_dir.name
        command = [sys.executable, "-m", "overfeat_tf.cli", "serve", str(model_dir), "--port", "0", "--rest-port", "0"]
        self._command = [*command, *options]
        self._told: list[str] = []

    def __enter__(self) -> Self:
        """Start it, and wait until it serves.

        Raises:
            RuntimeError: it ended instead, or takes too long; with what it said last.
        """
        begun = time.perf_counter()
        self._process = subprocess.Popen(
            self._command, cwd=Path(__file__).parents[4], stderr=subprocess.PIPE, text=True, errors="replace"
        )
        serves = threading.Event()
        threading.Thread(target=self._listen, args=[serves], daemon=True).start()
        found = serves.wait(_START_SECONDS)
        self.start_seconds = time.perf_counter() - begun
        addresses = [match for line in self._told if (match := SERVING.search(line))]
        if not found or not addresses:
            self._process.kill()
            raise RuntimeError(f"expected a server; it said: {self._told[-1] if self._told else 'nothing'}")
        self.address = addresses[0][1]
        self.rest = next(re.search(r"http://([^/\s]+)", line)[1] for line in self._told if "http://" in line)  # type: ignore[index]
        self.loading = next((line.partition(": ")[2] for line in self._told if "loaded in" in line), "")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def alive(self) -> bool:
        """Tell whether the process still runs."""
        return self._process.poll() is None

    @property
    def resident_bytes(self) -> int:
        """Measure the process's resident memory."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]

    def wait_for_state(self, version: int, state: int, seconds: float = 300.0) -> None:
        """Wait until a version is in a state (`ModelVersionStatus.AVAILABLE` ...).

        Raises:
            TimeoutError: it is not, after so many seconds.
        """
        request = get_model_status_pb2.GetModelStatusRequest(model_spec={"name": self._model})
        end = time.monotonic() + seconds
        with grpc.insecure_channel(self.address) as channel:
            stub = model_service_pb2_grpc.ModelServiceStub(channel)
            while time.monotonic() < end:
                found = stub.GetModelStatus(request, timeout=60).model_version_status
                if any((each.version, each.state) == (version, state) for each in found):
                    return
                time.sleep(0.2)
        raise TimeoutError(f"expected version {version} in state {state} within {seconds:g} s; got {found}")

    def _listen(self, serves: threading.Event) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._told = [*self._told[-100:], line.strip()]
            if SERVING.search(line):
                serves.set()
        serves.set()
        self._process.stderr.close()
