"""The inputs of the benchmarks: real photographs, and networks with random weights."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from overfeat_tf.network.presets import Preset, get_preset

FILES, SIZE = 500, (375, 500)  # height, width: a typical ImageNet photograph


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


def write_photographs(folder: Path) -> Sequence[Path]:
    """Write different crops of the photographs as JPEG files; return their paths."""
    rng = np.random.default_rng(0)
    samples = photographs()
    files = []
    for number in range(FILES):
        photograph = samples[number % len(samples)]
        y, x = (rng.integers(0, side - part + 1) for side, part in zip(photograph.shape, SIZE, strict=False))
        files.append(folder / f"{number:03}.jpg")
        Image.fromarray(photograph[y : y + SIZE[0], x : x + SIZE[1]]).save(files[-1], quality=90)
    return files


def rescaled_preset(name: str) -> Preset:
    """Return a preset whose random weights give activations of a trained network's size.

    The paper's initial weights shrink activations to nearly zero, and denormal numbers take longer to compute.
    """
    return replace(get_preset(name), init_std=None)
