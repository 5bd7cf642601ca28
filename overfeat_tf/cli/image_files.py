"""Image files: found by names, folders and globs, and read."""

import glob
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from overfeat_tf.images.decode import MAX_PIXELS

SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".jxl"}
MAX_BYTES = 9 * MAX_PIXELS  # a PNG of 4 x 16 bits a pixel that does not compress, and some to spare


def find_files(patterns: Sequence[str]) -> list[Path]:
    """List the images that files, folders (with those below) and globs name, each once, in order.

    Raises:
        ValueError: one of them names nothing.
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
            raise ValueError(f"expected image files; '{pattern}' names none")
        for path in paths:
            found.setdefault(os.path.abspath(path), path)
    return list(found.values())


def read_image(path: bytes | Path) -> tuple[bytes, str]:
    """Read a file; or give no bytes and say why not. What is no picture by its size is not read."""
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):
            return b"", "expected a file, got something else"
        if state.st_size > MAX_BYTES:
            return b"", f"expected an image of at most {MAX_BYTES} bytes, got {state.st_size}: not read"
        with open(path, "rb") as file:
            return file.read(state.st_size), ""
    except OSError as error:
        return b"", error.strerror or str(error)
