"""The inputs of the benchmarks: real photographs, batches of noise, and models with random weights."""

import io
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from overfeat_tf.models.model import Model
from overfeat_tf.network.convnet import build
from overfeat_tf.network.presets import PRESETS, Preset, get_preset

CLASSES, DETECTED_CLASSES = 1000, 20  # ImageNet's, and Pascal VOC's
FILES, SIZE = 500, (375, 500)  # height, width: a typical ImageNet photograph

log = logging.getLogger(__name__)


def photographs() -> list[np.ndarray]:
    """Return scikit-learn's sample photographs, uint8 [427, 640, 3] each."""
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise ImportError("the benchmarks' photographs need scikit-learn: pip install scikit-learn") from error
    return load_sample_images().images


def encode_photograph() -> bytes:
    """Encode a photograph of 427 x 640 pixels as JPEG."""
    file = io.BytesIO()
    Image.fromarray(photographs()[0]).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_photographs(folder: Path, count: int = FILES) -> Sequence[Path]:
    """Write different crops of the photographs as JPEG files into a new folder; return their paths."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    samples = photographs()
    files = []
    for number in range(count):
        photograph = samples[number % len(samples)]
        y, x = (rng.integers(0, side - part + 1) for side, part in zip(photograph.shape, SIZE, strict=False))
        files.append(folder / f"{number:03}.jpg")
        Image.fromarray(photograph[y : y + SIZE[0], x : x + SIZE[1]]).save(files[-1], quality=90)
    return files


def noise_images(count: int, height: int, width: int) -> np.ndarray:
    """Return random pixels, uint8 [count, height, width, 3]."""
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def noise_batch(preset: Preset, size: int, classes: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return a training batch of random windows (uint8) and labels (int32)."""
    labels = np.random.default_rng(1).integers(0, classes, size, np.int32)
    return tf.constant(noise_images(size, preset.window, preset.window)), tf.constant(labels)


def rescaled_preset(name: str) -> Preset:
    """Return a preset whose random weights give activations of a trained network's size.

    The paper's initial weights shrink activations to nearly zero, and denormal numbers take longer to compute.
    """
    return replace(get_preset(name), init_std=None)


def random_classifier(name: str) -> Model:
    """Return a classifier on a preset."""
    return Model(build(rescaled_preset(name), CLASSES), _labels(CLASSES), tasks=("classification",))


def random_detector(name: str) -> Model:
    """Return a model of all tasks on a preset or a backbone."""
    preset = rescaled_preset(name) if name in PRESETS else name
    return Model(build(preset, DETECTED_CLASSES, background=True, weights=None), _labels(DETECTED_CLASSES))


def export_detector(name: str, folder: Path) -> Path:
    """Export a model of all tasks on a preset as `folder`/NAME/1; return `folder`/NAME."""
    from serving.export.exporter import export  # here, so that it adds no memory to the processes that are measured

    log.info("exporting `%s`", name)
    export(random_detector(name), folder / name)
    return folder / name


def _labels(classes: int) -> tuple[str, ...]:
    return tuple(f"class {number}" for number in range(classes))
