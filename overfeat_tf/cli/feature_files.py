"""Files of features: array after array under its key, in one file that is whole or not there.

An array goes to disk as it comes, so that memory does not grow with their number: a zip's list of members, 0.4 KB each,
and HDF5's cache of some 30 MB are all that stays.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Protocol
from zipfile import ZipFile, ZipInfo

import h5py
import numpy as np

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
