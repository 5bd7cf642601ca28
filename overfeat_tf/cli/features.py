"""`overfeat features`: files in, a layer's output for each out, read and decoded while the network computes."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from overfeat_tf.cli.feature_files import check_suffix, name_apart, writing
from overfeat_tf.cli.image_files import read_image
from overfeat_tf.cli.progress import Progress
from overfeat_tf.images.decode import MAX_PIXELS, decode_image
from overfeat_tf.models.loading import load
from overfeat_tf.models.model import SHARED_PRODUCT
from overfeat_tf.models.predictor import Predictor

# Images that are being decoded at a time, and that wait for the network: 1.8 GB together if all were the largest.
DECODERS, AHEAD = min(os.cpu_count() or 1, 8), 4


class Extraction(NamedTuple):
    """What came of an extraction: images extracted, files that were not, seconds."""

    images: int
    unreadable: int
    seconds: float


class Decoded(NamedTuple):
    """A file that was read: its name in the answer, and its pixels, uint8 [H, W, 3]."""

    file: Path
    name: str
    pixels: np.ndarray


def parse_scales(text: str) -> tuple[int | None, ...]:
    """Read --scales: None for native, else numbers from 1, each once.

    Raises:
        ValueError: it is neither.
    """
    if text == "native":
        return (None,)
    try:
        return tuple(dict.fromkeys(int(number) for number in text.split(",")))
    except ValueError:
        raise ValueError(f"expected --scales native or numbers such as 1,2; got '{text}'") from None


def run(
    folder: Path, files: Sequence[Path], out: Path, layer: str | None, fine: bool, scales: Sequence[int | None]
) -> Extraction:
    """Extract a layer's output for each file into `out`; see `feature_files` for the formats.

    With one scale an array's key is its file's name (`name_apart`), with several NAME/scale1 and so on. A file that
    can't be read is reported on stderr and left out. Memory does not grow with the number of files.

    Raises:
        ValueError: no such model, layer, scale or format; before any image is read.
        OSError: `out` can't be written.
    """
    check_suffix(out)
    return extract_files(load(folder), files, out, layer, fine, scales)


def extract_files(
    model: Predictor, files: Sequence[Path], out: Path, layer: str | None, fine: bool, scales: Sequence[int | None]
) -> Extraction:
    """Do what `run` does, with a model that is loaded."""
    for scale in scales:
        model.extract_features([], layer, scale, fine)  # refuses what it does not have
    endings = [f"/scale{scale}" for scale in scales] if len(scales) > 1 else [""]
    images, start = 0, time.monotonic()
    with writing(out) as write, Progress(len(files)) as progress:
        for group in _groups(_decode(files, progress)):
            for name, arrays in _extract(model, group, layer, fine, scales, progress):
                images += 1
                for ending, array in zip(endings, arrays, strict=True):
                    write(name + ending, array)
            progress.advance(len(group))
    return Extraction(images, len(files) - images, time.monotonic() - start)


def _decode(files: Sequence[Path], progress: Progress) -> Iterator[Decoded]:
    """Yield the files that can be read, in order, decoded ahead; report the others."""

    def one(path: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        data, problem = tf.numpy_function(read_image, [path], [tf.string, tf.string])
        pixels, status = decode_image(data)
        return pixels, tf.where(problem == "", status, problem)

    options = tf.data.Options()
    # There is nothing to tune, and the tuner's thread may keep the pipeline's end waiting for a minute.
    options.autotune.enabled = False
    paths = tf.data.Dataset.from_tensor_slices([os.fsencode(file) for file in files]).with_options(options)
    images = paths.map(one, num_parallel_calls=DECODERS, deterministic=True).prefetch(AHEAD)
    for file, name, (pixels, status) in zip(files, name_apart(files), images.as_numpy_iterator(), strict=True):
        if status:
            progress.report(file, status.decode())
            progress.advance(1)
        else:
            yield Decoded(file, name, pixels)


def _groups(images: Iterator[Decoded]) -> Iterator[list[Decoded]]:
    """Group images for the shared product, of no more pixels together than one alone may have."""
    group: list[Decoded] = []
    for image in images:
        if group and sum(each.pixels.size for each in (*group, image)) > 3 * MAX_PIXELS:
            yield group
            group = []
        group.append(image)
        if len(group) == SHARED_PRODUCT:
            yield group
            group = []
    if group:
        yield group


def _extract(
    model: Predictor,
    group: list[Decoded],
    layer: str | None,
    fine: bool,
    scales: Sequence[int | None],
    progress: Progress,
) -> Iterator[tuple[str, tuple[np.ndarray, ...]]]:
    """Yield each image's name with its features at all scales; where memory runs out, one image at a time."""
    try:
        arrays = [model.extract_features([image.pixels for image in group], layer, scale, fine) for scale in scales]
    except tf.errors.ResourceExhaustedError:
        if len(group) > 1:
            for image in group:
                yield from _extract(model, [image], layer, fine, scales, progress)
            return
        size = "x".join(map(str, group[0].pixels.shape[:2]))
        progress.report(group[0].file, f"not enough memory for {size} pixels at this size; --scales 1 takes less")
        return
    yield from zip([image.name for image in group], zip(*arrays, strict=True), strict=True)
