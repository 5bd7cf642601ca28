"""`overfeat features`: compute a layer's output for image files and write it to one file.

Images are read and decoded while the network computes. An array goes to disk as it comes, so that memory does not grow
with their number: only a zip's list of members, 0.4 KB each, or HDF5's cache of some 30 MB stay. The file appears only
once it is complete.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol
from zipfile import ZipFile, ZipInfo

import h5py
import numpy as np
import tensorflow as tf

from overfeat_tf.cli.image_files import read_image
from overfeat_tf.images.decode import MAX_PIXELS, decode_image
from overfeat_tf.models.loading import load
from overfeat_tf.models.model import SHARED_PRODUCT
from overfeat_tf.models.predictor import Predictor
from training.progress import Progress

NUMBERS_A_TIME = 4096  # that the text format turns into text together
HDF5_SPARE = 1 << 20  # bytes, more than HDF5 adds to an array for its name and place
Write = Callable[[str, np.ndarray], None]


class Format(Protocol):
    """A kind of file, open for writing."""

    def write(self, key: str, array: np.ndarray) -> None:
        """Append an array [h, w, C] under a key that is new."""

    def close(self) -> None:
        """Write what is left."""


class Npz:
    """What `np.load` reads: an uncompressed zip of .npy members."""

    def __init__(self, path: Path):
        self._archive = ZipFile(path, "w", allowZip64=True)

    def write(self, key: str, array: np.ndarray) -> None:
        # An info of our own has the same date always: the same features make the same file.
        with self._archive.open(ZipInfo(f"{key}.npy"), "w", force_zip64=True) as member:
            np.lib.format.write_array(member, array, allow_pickle=False)

    def close(self) -> None:
        self._archive.close()


class Hdf5:
    """HDF5 with a dataset for each key; a key's slashes are groups.

    Where the disk is full HDF5 passes over lost data, or ends the process. So that it never meets an end of the disk,
    the system is asked for space before each array, and says so where there is none.
    """

    def __init__(self, path: Path):
        # The format of 2008 and since: names in steps of some KB, where the first one's list of them doubles.
        self._file, self._space, self._reserved = h5py.File(path, "w", libver=("v108", "v108")), path.open("r+b"), 0

    def write(self, key: str, array: np.ndarray) -> None:
        more = self._file.id.get_filesize() + array.nbytes + HDF5_SPARE - self._reserved
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
    """The text of the authors' 2013 release: a line `C H W`, then the numbers in (C, H, W) order at 6 digits.

    Block follows block; a second file has their keys, one in each line.
    """

    def __init__(self, path: Path, names: Path):
        self._blocks, self._names = path.open("w", encoding="ascii"), names.open("w", encoding="utf-8")

    def write(self, key: str, array: np.ndarray) -> None:
        numbers = array.transpose(2, 0, 1).reshape(-1)
        self._blocks.write("{2} {0} {1}\n".format(*array.shape))
        for first in range(0, len(numbers), NUMBERS_A_TIME):
            some = numbers[first : first + NUMBERS_A_TIME].tolist()
            self._blocks.write(" " * bool(first) + " ".join(["%.6g"] * len(some)) % tuple(some))
        self._blocks.write("\n")
        self._names.write(key.replace("\n", "\\n") + "\n")

    def close(self) -> None:
        try:
            self._blocks.close()
        finally:
            self._names.close()


FORMATS: dict[str, Callable[..., Format]] = {".npz": Npz, ".h5": Hdf5, ".txt": Text}


def check_suffix(out: Path) -> None:
    """Raise ValueError unless the file's name ends in one of the three formats'."""
    if out.suffix.lower() not in FORMATS:
        raise ValueError(f"expected --out FILE.npz, FILE.h5 or FILE.txt; got '{out}'")


def paths_of(out: Path) -> list[Path]:
    """List the files that a file of features is made of: beside FILE.txt, the keys in FILE.names.txt."""
    return [out, out.with_suffix(".names.txt")] if out.suffix.lower() == ".txt" else [out]


def name_apart(files: Sequence[Path]) -> list[str]:
    """Name different files, each with as many of its folders as it takes to tell all apart.

    No name is that of another's folder either: HDF5 has one thing of a name, and the file system had.
    """
    names = [_text(file.name) for file in files]
    while True:
        counts = Counter(names)
        folders = {str(folder) for name in counts if "/" in name for folder in PurePosixPath(name).parents}
        longer = {
            i: _one_folder_more(files[i], name) for i, name in enumerate(names) if counts[name] > 1 or name in folders
        }
        if all(names[i] == name for i, name in longer.items()):
            return names
        for i, name in longer.items():
            names[i] = name


def _one_folder_more(file: Path, name: str) -> str:
    return "/".join(_text(part) for part in Path(os.path.abspath(file)).parts[1:][-name.count("/") - 2 :])


def _text(name: str) -> str:
    """Spell out the bytes of a file's name that are no UTF-8: neither zip nor HDF5 takes them."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@contextmanager
def writing(out: Path) -> Iterator[Write]:
    """Open a file of features for a `with`; it is there, in place of an older one, once all of it is written.

    Until then it lies beside under a hidden name, which goes away with whatever breaks off the `with`.

    Raises:
        ValueError: no known suffix.
        OSError: the folder can't be written, at once; or the disk is full, later.
    """
    check_suffix(out)
    wholes = paths_of(out)
    partials = [path.with_name(f".{path.name}.partial") for path in wholes]
    try:
        with _naming(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            file = FORMATS[out.suffix.lower()](*partials)

        def write(key: str, array: np.ndarray) -> None:
            with _naming(out):
                file.write(key, array)

        try:
            yield write
            with _naming(out):
                file.close()
        except BaseException:
            with suppress(Exception):  # the reason is known: that the rest can't be written either adds nothing
                file.close()
            raise
        for partial, whole in reversed(list(zip(partials, wholes, strict=True))):
            partial.replace(whole)
    finally:
        for path in partials:
            with suppress(OSError):  # most likely there was no making it either
                path.unlink()


@contextmanager
def _naming(out: Path) -> Iterator[None]:
    """Say what is wrong with the file or its folder in the system's words, by the name that the user knows."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(out)) from error


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
    """Extract a layer's output for each file into `out`; see `writing` for the formats.

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
