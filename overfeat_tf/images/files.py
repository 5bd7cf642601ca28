"""Find image files by names, folders and globs, and read them."""

import glob
import io
import os
import re
import stat
import struct
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import tensorflow as tf
from PIL import Image

from overfeat_tf.images.decode import MAX_PIXELS
from overfeat_tf.images.pixels import upright

# What the graph decodes, and what Pillow turns into PNG first; in each folder and set of data the same.
DECODED = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".jxl")
CONVERTED = (".tif", ".tiff", ".heic", ".heif", ".avif", ".ppm", ".pgm", ".pbm", ".pnm")
SUFFIXES = DECODED + CONVERTED
# Folders that systems leave in archives and on disks.
JUNK = {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
# The first bytes of TIFF, of what has ISO's boxes (HEIC, AVIF), and of PPM and its kin.
FOREIGN = re.compile(rb"II[*+]\0|MM\0[*+]|....ftyp(?:hei|hev|mif1|msf1|avi)|P[1-6]\s", re.DOTALL)
ENCODED_IMAGE_FEATURE = "image/encoded"  # of a tf.Example, as TensorFlow's own data sets name it
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
        named = [path] if os.path.exists(path) else [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
        paths = []
        for path in named:
            paths += sorted(_inside(path, suffixes)) if os.path.isdir(path) else [path] if os.path.isfile(path) else []
        if not paths:
            raise ValueError(f"expected image files; '{pattern}' matches none")
        for path in paths:
            found.setdefault(os.path.abspath(path), path)
    return list(found.values())


def walk(
    folder: Path, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[str], list[str], list[str]]]:
    """Walk a folder and what its links lead to, without `JUNK`, as `os.walk` does.

    The fourth of each are its links that are not followed: those to a folder that they lie in.
    """
    above: dict[str, set[str]] = {str(folder): set()}
    for place, names, files in os.walk(folder, onerror=onerror, followlinks=True):
        lies_in = above.pop(place) | {os.path.realpath(place)}
        real = {name: os.path.realpath(os.path.join(place, name)) for name in sorted(names) if name not in JUNK}
        names[:] = [name for name in real if real[name] not in lies_in]
        above |= {os.path.join(place, name): lies_in for name in names}
        yield place, names, files, [name for name in real if real[name] in lies_in]


def _inside(folder: Path, suffixes: Collection[str]) -> Iterator[Path]:
    """Yield the files in a folder, and in what its links lead to, that have one of the suffixes."""
    for place, _, files, _ in walk(folder):
        # macOS puts ._NAME beside NAME on foreign disks: no image, whatever the suffix.
        own = (file for file in files if not file.startswith("._"))
        yield from (Path(place, file) for file in own if Path(file).suffix.lower() in suffixes)


def read_image(path: bytes | Path) -> tuple[bytes, str]:
    """Return an image file's bytes and "", or b"" and the reason. TIFF, HEIC, AVIF and PPM are returned as PNG.

    A file that is too large for an image is not read.
    """
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):
            return b"", "expected a regular file"
        if state.st_size > MAX_BYTES:
            return b"", f"expected an image of at most {MAX_BYTES} bytes, got {state.st_size}"
        with open(path, "rb") as file:
            data = file.read(state.st_size)
    except OSError as error:
        return b"", error.strerror or str(error)
    except ValueError as error:  # a null byte or a lone surrogate in the name
        return b"", str(error)
    return decodable(data)


def decodable(data: bytes) -> tuple[bytes, str]:
    """Return an encoded image and "", TIFF, HEIC, AVIF and PPM as PNG, or b"" and the reason."""
    return _as_png(data) if FOREIGN.match(data) else (data, "")


def image_example(image: bytes) -> tf.train.Example:
    """Wrap an encoded image in a tf.Example, as the signature `classify` reads it."""
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[image]))
    return tf.train.Example(features=tf.train.Features(feature={ENCODED_IMAGE_FEATURE: feature}))


def _as_png(data: bytes) -> tuple[bytes, str]:
    """Return an image of a kind that Pillow reads as PNG, upright, and "", or b"" and the reason."""
    heif = data[4:8] == b"ftyp" and data[8:11] != b"avi"
    if heif:
        try:
            import pillow_heif
        except ImportError:
            return b"", "expected pillow-heif, to read HEIC: pip install pillow-heif, or save the image as JPEG"
        pillow_heif.register_heif_opener()
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                return b"", f"expected at most {MAX_PIXELS} pixels, got {opened.width} x {opened.height}: send less"
            if opened.mode in ("I", "F"):
                return b"", f"expected 8 or 16 bits a channel, got 32 in {opened.format}: save it with 8"
            shown = upright(opened)
            kept = shown.mode in ("1", "L", "RGB") or shown.mode.startswith("I;16")
            stream = io.BytesIO()
            (shown if kept else shown.convert("RGB")).save(stream, "PNG", compress_level=1, exif=b"", icc_profile=None)
            return stream.getvalue(), ""
    except (OSError, SyntaxError, ValueError, TypeError, struct.error, Image.DecompressionBombError) as error:
        return b"", f"damaged or of a kind that Pillow does not read: {' '.join(str(error).split()):.120}"
