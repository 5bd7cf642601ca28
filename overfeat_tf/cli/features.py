"""`overfeat features`: compute a layer's output for image files and write it to one file.

Images are read and decoded while the network computes. Each array is written at once, so memory does not grow with
their number, except for the zip's list of members (0.4 KB each) or HDF5's cache (some 30 MB). The file appears when it
is complete.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from zipfile import ZipFile, ZipInfo

import h5py
import numpy as np
import tensorflow as tf

from overfeat_tf.cli.options import Processed
from overfeat_tf.images.decode import MAX_PIXELS, decode_image
from overfeat_tf.images.files import read_image
from overfeat_tf.models.model import SHARED_PRODUCT
from overfeat_tf.models.predictor import Predictor
from training.progress import Progress

NUMBERS_PER_WRITE = 4096  # in the text format
HDF5_OVERHEAD = 1 << 20  # bytes, more than HDF5 needs for the name and place of an array
Write = Callable[[str, np.ndarray], None]


class Npz:
    """The format of `np.load`: an uncompressed zip of .npy members."""

    def __init__(self, path: Path):
        self._archive = ZipFile(path, "w", allowZip64=True)

    def write(self, key: str, array: np.ndarray) -> None:
        # A ZipInfo has a fixed date, so the same features make the same file.
        with self._archive.open(ZipInfo(f"{key}.npy"), "w", force_zip64=True) as member:
            np.lib.format.write_array(member, array, allow_pickle=False)

    def close(self) -> None:
        self._archive.close()


class Hdf5:
    """HDF5 with a dataset for each key. Slashes in a key make groups.

    HDF5 ignores lost data or aborts the process when the disk is full. So the space for each array is reserved first,
    and the system reports a full disk.
    """

    def __init__(self, path: Path):
        # The format of 2008 stores names in steps of some KB; the oldest one doubles its list of names.
        self._file, self._space, self._reserved = h5py.File(path, "w", libver=("v108", "v108")), path.open("r+b"), 0

    def write(self, key: str, array: np.ndarray) -> None:
        more = self._file.id.get_filesize() + array.nbytes + HDF5_OVERHEAD - self._reserved
        if more > 0 and hasattr(os, "posix_fallocate"):  # macOS has none
            os.posix_fallocate(self._space.fileno(), self._reserved, more)
            self._reserved += more
        self._file.create_dataset(key, data=array)

    def close(self) -> None:
        self._file.flush()
        size = self._file.id.get_filesize()
        self._file.close()
        with self._space:
            self._space.truncate(size)


class Text:
    """The text format of the authors' 2013 release: blocks of a line `C H W` and the numbers as (C, H, W), 6 digits.

    A second file has the keys of the blocks, one per line.
    """

    def __init__(self, path: Path, names: Path):
        self._blocks, self._names = path.open("w", encoding="ascii"), names.open("w", encoding="utf-8")

    def write(self, key: str, array: np.ndarray) -> None:
        numbers = array.transpose(2, 0, 1).reshape(-1)
        self._blocks.write("{2} {0} {1}\n".format(*array.shape))
        for first in range(0, len(numbers), NUMBERS_PER_WRITE):
            part = numbers[first : first + NUMBERS_PER_WRITE].tolist()
            self._blocks.write(" " * bool(first) + " ".join(["%.6g"] * len(part)) % tuple(part))
        self._blocks.write("\n")
        self._names.write(key.replace("\n", "\\n") + "\n")

    def close(self) -> None:
        try:
            self._blocks.close()
        finally:
            self._names.close()


# Each writes arrays [h, w, C] under new keys, until it is closed.
FORMATS: dict[str, Callable[..., Npz | Hdf5 | Text]] = {".npz": Npz, ".h5": Hdf5, ".txt": Text}


def check_suffix(out: Path) -> None:
    """Raise ValueError unless the file has a suffix of `FORMATS`."""
    if out.suffix.lower() not in FORMATS:
        raise ValueError(f"expected --out FILE.npz, FILE.h5 or FILE.txt; got '{out}'")


def unique_names(files: Sequence[Path]) -> list[str]:
    """Return a different name for each file: its file name, with as many parent folders as needed.

    No name is another one's folder, because HDF5 cannot have a dataset and a group of the same name.
    """
    names = [_text(file.name) for file in files]
    while True:
        counts = Counter(names)
        folders = {str(folder) for name in counts if "/" in name for folder in PurePosixPath(name).parents}
        longer = {
            i: _with_one_more_folder(files[i], name)
            for i, name in enumerate(names)
            if counts[name] > 1 or name in folders
        }
        if all(names[i] == name for i, name in longer.items()):
            return names
        for i, name in longer.items():
            names[i] = name


def _with_one_more_folder(file: Path, name: str) -> str:
    return "/".join(_text(part) for part in Path(os.path.abspath(file)).parts[1:][-name.count("/") - 2 :])


def _text(name: str) -> str:
    """Escape the bytes of a file name that are not UTF-8, which zip and HDF5 do not accept."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@contextmanager
def open_features(out: Path) -> Iterator[Write]:
    """Open a features file for writing. It replaces an older one once it is complete.

    Until then it has a hidden name in the same folder. An error in the `with` block removes it.

    Raises:
        ValueError: the suffix is unknown.
        OSError: the folder can't be written, or later the disk is full.
    """
    check_suffix(out)
    # FILE.names.txt has the keys of FILE.txt.
    outputs = [out, out.with_suffix(".names.txt")] if out.suffix.lower() == ".txt" else [out]
    partials = [path.with_name(f".{path.name}.partial") for path in outputs]
    try:
        with _errors_for(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            file = FORMATS[out.suffix.lower()](*partials)

        def write(key: str, array: np.ndarray) -> None:
            with _errors_for(out):
                file.write(key, array)

        try:
            yield write
            with _errors_for(out):
                file.close()
        except BaseException:
            with suppress(Exception):  # the first error is the one to report
                file.close()
            raise
        for partial, output in reversed(list(zip(partials, outputs, strict=True))):
            partial.replace(output)
    finally:
        for path in partials:
            with suppress(OSError):  # it may not exist
                path.unlink()


@contextmanager
def _errors_for(out: Path) -> Iterator[None]:
    """Raise the system's errors with the name of the output file instead of a temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(out)) from error


# Images that are decoded concurrently, and that wait for the network: 1.8 GB if all have the largest size.
DECODERS, PREFETCHED = min(os.cpu_count() or 1, 8), 4


class Decoded(NamedTuple):
    """A decoded file: its path, its key and its pixels, uint8 [H, W, 3]."""

    file: Path
    name: str
    pixels: np.ndarray


def parse_scales(text: str) -> tuple[int | None, ...]:
    """Parse --scales: None for native, or unique numbers from 1.

    Raises:
        ValueError: the text is neither.
    """
    if text == "native":
        return (None,)
    try:
        return tuple(dict.fromkeys(int(number) for number in text.split(",")))
    except ValueError:
        raise ValueError(f"expected --scales native or numbers such as 1,2; got '{text}'") from None


def extract_files(
    model: Predictor, files: Sequence[Path], out: Path, layer: str | None, fine: bool, scales: Sequence[int | None]
) -> Processed:
    """Extract a layer's output for each file into `out`; see `FORMATS`.

    The key of an array is the file's unique name; with several scales it is NAME/scale1 and so on. A file that can't be
    read is reported on stderr and skipped. Memory does not grow with the number of files.

    Raises:
        ValueError: the layer or the scale does not exist; raised before any image is read.
        OSError: `out` can't be written.
    """
    for scale in scales:
        model.extract_features([], layer, scale, fine)  # raises ValueError for an unknown layer or scale
    suffixes = [f"/scale{scale}" for scale in scales] if len(scales) > 1 else [""]
    images, start = 0, time.monotonic()
    with open_features(out) as write, Progress(len(files)) as progress:
        for group in _groups(_decode(files, progress)):
            for name, arrays in _extract(model, group, layer, fine, scales, progress):
                images += 1
                for suffix, array in zip(suffixes, arrays, strict=True):
                    write(name + suffix, array)
            progress.advance(len(group))
    return Processed(images, len(files) - images, time.monotonic() - start)


def _decode(files: Sequence[Path], progress: Progress) -> Iterator[Decoded]:
    """Decode the files in order, ahead of the network; report those that can't be read."""

    def one(path: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        data, problem = tf.numpy_function(read_image, [path], [tf.string, tf.string])
        pixels, status = decode_image(data)
        return pixels, tf.where(problem == "", status, problem)

    options = tf.data.Options()
    # There is nothing to tune, and the tuner's thread may delay the end of the pipeline by a minute.
    options.autotune.enabled = False
    paths = tf.data.Dataset.from_tensor_slices([os.fsencode(file) for file in files]).with_options(options)
    images = paths.map(one, num_parallel_calls=DECODERS, deterministic=True).prefetch(PREFETCHED)
    for file, name, (pixels, status) in zip(files, unique_names(files), images.as_numpy_iterator(), strict=True):
        if status:
            progress.report(file, status.decode())
            progress.advance(1)
        else:
            yield Decoded(file, name, pixels)


def _groups(images: Iterator[Decoded]) -> Iterator[list[Decoded]]:
    """Group images for the shared product. A group has at most as many pixels as one image may have."""
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
    """Yield each image's name and its features at all scales. If memory runs out, try one image at a time."""
    try:
        arrays = [model.extract_features([image.pixels for image in group], layer, scale, fine) for scale in scales]
    except tf.errors.ResourceExhaustedError:
        if len(group) > 1:
            for image in group:
                yield from _extract(model, [image], layer, fine, scales, progress)
            return
        size = "x".join(map(str, group[0].pixels.shape[:2]))
        progress.report(group[0].file, f"not enough memory for {size} pixels at this size; try --scales 1")
        return
    yield from zip([image.name for image in group], zip(*arrays, strict=True), strict=True)
