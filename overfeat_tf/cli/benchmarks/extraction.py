"""What reading and decoding cost beside the network when features are extracted from files."""

import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tensorflow as tf
from PIL import Image

from overfeat_tf.cli.benchmarks.machine import seconds
from overfeat_tf.cli.features import extract_files
from overfeat_tf.models.model import Model
from overfeat_tf.network.convnet import build

IMAGES, SIZE = 500, (375, 500)  # height, width: the usual photograph of ImageNet
SCALE = 1

log = logging.getLogger(__name__)


def extraction_of_network(repetitions: int) -> tuple[list[float], str]:
    """Compare the rate of `overfeat features` with the network's alone on decoded images, in turn.

    Returns:
        A ratio for each repetition, and what was measured.
    """
    model = Model(build("fast", 1000), tuple(map(str, range(1000))), tasks=("classification",))
    with TemporaryDirectory(prefix="overfeat-benchmark-") as name:
        folder = Path(name)
        files = write_photographs(folder)
        pixels = [tf.io.decode_jpeg(file.read_bytes(), 3).numpy() for file in files]
        model.extract_features(pixels[:8], scale=SCALE)
        ratios = []
        for number in range(1, repetitions + 1):
            extraction = seconds(lambda: extract_files(model, files, folder / "features.npz", None, False, [SCALE]))
            alone = seconds(lambda: model.extract_features(pixels, scale=SCALE))
            ratios.append(alone / extraction)
            rates = IMAGES / extraction, IMAGES / alone
            log.info("extraction %d of %d: %.1f images/s, %.1f without files", number, repetitions, *rates)
    return ratios, f"{IMAGES} JPEGs of {SIZE[1]}x{SIZE[0]}, `fast`, scale {SCALE}: files to .npz over decoded images"


def write_photographs(folder: Path) -> Sequence[Path]:
    """Write different cuts of real photographs."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    photographs = load_sample_images().images
    files = []
    for number in range(IMAGES):
        photograph = photographs[number % len(photographs)]
        y, x = (rng.integers(0, whole - part + 1) for whole, part in zip(photograph.shape, SIZE, strict=False))
        files.append(folder / f"{number:03}.jpg")
        Image.fromarray(photograph[y : y + SIZE[0], x : x + SIZE[1]]).save(files[-1], quality=90)
    return files
