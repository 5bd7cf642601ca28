"""The small model exported in two versions, and the embedded server that serves it."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import tensorflow as tf
from exported_model import exported, images, model, reloaded  # noqa: F401 - fixtures
from small_model import SmallModel, png
from stock_requests import classify_request, predict_request, write_warmup

from serving.embedded.config import ServedModel, VersionPolicy
from serving.embedded.servables import Servable
from serving.embedded.server import Server, start_models
from serving.embedded.version_manager import load_version

LABELS = {"stable": 1, "canary": 2}
MAX_BYTES = 4 << 20


@pytest.fixture(scope="session")
def max_bytes() -> int:
    """Gives the largest message that the server takes."""
    return MAX_BYTES


@pytest.fixture(scope="session")
def certificate(tmp_path_factory) -> Path:
    """Makes a certificate for this machine, which signs itself, and its key beside it, `key.pem`."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the command openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    curve = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    made = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([*curve.split(), *made], cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem"


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    """Exports versions 1 and 2, beside what TF Serving passes over; requests call the model `m`."""
    base = tmp_path_factory.mktemp("models") / "m"
    (base / "3.partial").mkdir(parents=True)
    for version in (1, 2):
        model = SmallModel(version)  # noqa: F811 - not the fixture
        signatures = {key: getattr(model, key) for key in ("detect", "detect_images", "classify", "spin")}
        signatures |= {"serving_default": model.detect, "classify_twin": model.classify}
        tf.saved_model.save(model, str(base / str(version)), signatures)
    write_warmup(base / "2", predict_request("detect", image_bytes=[png()]), classify_request(png()))
    return base


@pytest.fixture(scope="session")
def server(model_dir) -> Iterator[Server]:
    """Serves both versions on a free port."""
    both = ServedModel("m", model_dir, VersionPolicy(all=VersionPolicy.All()), LABELS)
    with start_models([both], port=0, max_bytes=MAX_BYTES) as server:
        yield server


@pytest.fixture(scope="session")
def channel(server) -> Iterator[grpc.Channel]:
    """Connects to the server with the stock client's settings."""
    with grpc.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture(scope="session")
def servable(model_dir) -> Servable:
    """Loads version 1 by itself."""
    return load_version("m", 1, model_dir / "1", MAX_BYTES)
