"""Find image files by names, folders and globs, and read them."""

import glob
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from overfeat_tf.images.decode import MAX_PIXELS

SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".jxl"}
MAX_BYTES = 9 * MAX_PIXELS  # an uncompressed PNG of 4 x 16 bits per pixel, with a margin


def find_files(patterns: Sequence[str], suffixes: Collection[str] = SUFFIXES) -> list[Path]:
    """List the files that names, folders (recursively, those with these suffixes) and globs name, each once.

    Links to folders are followed.

    Raises:
        ValueError: one of them matches no file.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        path = Path(pattern)
        named = [path] if path.exists() else [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
        paths = []
        for path in named:
            paths += sorted(_inside(path, suffixes)) if path.is_dir() else [path] if path.is_file() else []
        if not paths:
            raise ValueError(f"expected image files; '{pattern}' matches none")
        for path in paths:
            found.setdefault(os.path.abspath(path), path)
    return list(found.values())


def _inside(folder: Path, suffixes: Collection[str]) -> Iterator[Path]:
    """Walk a folder and what its links lead to; a link back to a folder that it lies in is not followed."""
    above: dict[str, set[str]] = {str(folder): set()}
    for place, names, files in os.walk(folder, followlinks=True):
        lies_in = above.pop(place) | {os.path.realpath(place)}
        names[:] = [name for name in names if os.path.realpath(os.path.join(place, name)) not in lies_in]
        above |= {os.path.join(place, name): lies_in for name in names}
        yield from (Path(place, file) for file in files if Path(file).suffix.lower() in suffixes)


def read_image(path: bytes | Path) -> tuple[bytes, str]:
    """Return a file's bytes and "", or b"" and the reason. A file that is too large for an image is not read."""
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):
            return b"", "expected a regular file"
        if state.st_size > MAX_BYTES:
            return b"", f"expected an image of at most {MAX_BYTES} bytes, got {state.st_size}"
        with open(path, "rb") as file:
            return file.read(state.st_size), ""
    except OSError as error:
        return b"", error.strerror or str(error)
