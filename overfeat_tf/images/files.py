"""Find image files by names, folders and globs, and read them."""

import glob
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from overfeat_tf.images.decode import MAX_PIXELS

SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".jxl"}
MAX_BYTES = 9 * MAX_PIXELS  # an uncompressed PNG of 4 x 16 bits per pixel, with a margin


def find_files(patterns: Sequence[str]) -> list[Path]:
    """List the images that files, folders (recursively) and globs name, each once.

    Raises:
        ValueError: one of them matches no file.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            paths = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        elif path.is_file():
            paths = [path]
        else:
            paths = [Path(file) for file in sorted(glob.glob(pattern, recursive=True)) if Path(file).is_file()]
        if not paths:
            raise ValueError(f"expected image files; '{pattern}' matches none")
        for path in paths:
            found.setdefault(os.path.abspath(path), path)
    return list(found.values())


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
