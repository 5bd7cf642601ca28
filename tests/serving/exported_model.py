"""A model that finds things in noise, its export, and images of all kinds; the fixtures are the folder's."""

import io
import os
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from overfeat_tf.merge.calibration import Calibration, relevant_options
from overfeat_tf.models.loading import Exported, load
from overfeat_tf.models.model import Model
from overfeat_tf.network.convnet import build
from overfeat_tf.options import InferenceOptions
from serving.export.exporter import export

TRAINING = {"name": "none", "data": "voc:/home/someone/my cats, coco:/x/images:/x/a.json", "stages": [{"rate": 0.1}]}
METRICS = {"map50": 0.25, "images": 12}
LABELS = ("cat", "dog", "owl")


@pytest.fixture(scope="session")
def model() -> Model:
    """A calibrated network of random weights, sharpened so that its windows disagree and some are confident."""
    tf.keras.utils.set_random_seed(7)
    network = build("tiny", len(LABELS), background=True)
    last = network.classifier.get_layer("scores")
    kernel, bias = last.get_weights()
    last.set_weights([kernel * 150, bias])
    options = InferenceOptions(scales=(1, 4), top_k=2, min_score=0.5, max_windows=60, max_detections=20)
    known = relevant_options(options)
    calibration = Calibration(1.5, 1.0, -1.0, 0.42, options=known, images=60, detections=700)
    return Model(network, LABELS, options, calibration=calibration)


@pytest.fixture(scope="session")
def exported(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(model, tmp_path_factory.mktemp("models") / "pets", None, TRAINING, METRICS)


@pytest.fixture(scope="session")
def reloaded(exported: Path) -> Exported:
    return load(exported.parent)


def encode(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None, **options) -> bytes:
    out = io.BytesIO()
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(out, kind, **options)
    return out.getvalue()


def bomb() -> bytes:
    """A PNG whose header claims 60000 x 60000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    body = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = b"IDAT" + zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + body + struct.pack(">I", 1000) + data + struct.pack(">I", zlib.crc32(data))


@pytest.fixture(scope="session")
def images() -> list[bytes]:
    """Mixed sizes, modes and formats, good ones and bad ones."""
    draw = np.random.default_rng(3)

    def noise(height: int, width: int) -> np.ndarray:
        coarse = draw.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        return np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, :width]

    turned = Image.Exif()
    turned[0x0112] = 6
    good = [
        encode(noise(90, 130)),
        encode(noise(200, 75), "JPEG", quality=90),
        encode(noise(64, 64), mode="L"),
        encode(noise(120, 100), mode="RGBA"),
        encode(noise(70, 90)[..., 0].astype(np.uint16) * 257),
        encode(noise(80, 140), "JPEG", exif=turned),
        encode(noise(1, 1)),
        encode(noise(8, 400)),
    ]
    return [*good, b"", b"no image at all", good[1][: len(good[1]) // 2], good[0][:60], bomb()]


def ask(folder: Path, images: list[bytes], *versions: Path) -> list[dict]:
    """Return what a process without this project makes of exports (`stranger.py`)."""
    (folder / "requests").write_bytes(pickle.dumps(images))
    command = [sys.executable, Path(__file__).with_name("stranger.py"), folder / "requests", folder / "out", *versions]
    environment = {**os.environ, "PYTHONPATH": "", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=folder, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return pickle.loads((folder / "out").read_bytes())


GOOD = 8  # the first so many of `images` can be read


def assert_equal_answers(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    for key, value in left.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(value, right[key], rtol=1e-4, atol=1e-5, err_msg=key)
        else:
            np.testing.assert_array_equal(value, right[key], err_msg=key)
