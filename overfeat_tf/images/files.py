"""Images as users hand them over: files by names, folders and globs, and pictures in memory."""

import glob
import io
import os
import re
import stat
import struct
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from overfeat_tf.images.decode import MAX_PIXELS

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
XMP = ("XML:com.adobe.xmp", "xmp")  # what Pillow calls it, and takes an orientation from, which no decoder here does
DEEP = ("I", "I;16", "I;16B", "I;16L", "F")  # PIL's modes of more than 8 bits
# What Pillow and its plugins raise for damaged files.
DAMAGED_ERRORS = (OSError, SyntaxError, ValueError, TypeError, RuntimeError, struct.error, Image.DecompressionBombError)


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
                size = f"{opened.height} x {opened.width} (height x width)"
                return b"", f"expected at most {MAX_PIXELS} pixels, got {size}: send a smaller one"
            if opened.mode in ("I", "F"):
                return b"", f"expected 8 or 16 bits a channel, got 32 in {opened.format}: save it with 8"
            shown = _upright(opened)
            kept = shown.mode in ("1", "L", "RGB") or shown.mode.startswith("I;16")
            stream = io.BytesIO()
            (shown if kept else shown.convert("RGB")).save(stream, "PNG", compress_level=1, exif=b"", icc_profile=None)
            return stream.getvalue(), ""
    except DAMAGED_ERRORS as error:
        return b"", f"damaged or of a kind that Pillow does not read: {' '.join(str(error).split()):.120}"


def as_pixels(image: object) -> np.ndarray:
    """Return an image in memory as RGB pixels, uint8 [H, W, 3], by the rules that hold for files.

    Args:
        image: A PIL image, whose Exif orientation is applied; or an array or tensor [H, W] or [H, W, C], of 1 (gray),
            2 (gray and alpha), 3 (RGB) or 4 (RGB and alpha) channels. uint8 is taken as it is, of uint16 the upper 8
            bits, and floats are 0..1 and multiplied by 255. Alpha is dropped: the colour beneath it shows.

    Raises:
        ValueError: another type or shape, or floats beyond 0..1.
    """
    if isinstance(image, Image.Image):
        shown = _upright(image)
        return as_pixels(np.asarray(shown)) if shown.mode in DEEP else np.asarray(shown.convert("RGB"))
    array = np.asarray(image)
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[-1] not in (1, 2, 3, 4) or not array.size:
        raise ValueError(f"expected pixels [H, W], or [H, W, C] of 1 to 4 channels; got {describe(image)}")
    if np.issubdtype(array.dtype, np.floating):
        least, most = float(array.min()), float(array.max())
        if not (least >= 0 and most <= 1):  # nan neither
            raise ValueError(f"expected float pixels from 0 to 1; got {least:g} to {most:g}: convert them to uint8")
        array = np.round(array.astype(np.float32) * 255).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.uint16):  # of either byte order
        array = (array >> 8).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ValueError(f"expected pixels of uint8, uint16 or float; got {describe(image)}: convert them to uint8")
    return np.repeat(array[..., :1], 3, axis=-1) if array.shape[-1] < 3 else array[..., :3]


def _upright(image: Image.Image) -> Image.Image:
    """Return a PIL image turned by its Exif orientation; one that only XMP states turns nothing, as in other files."""
    if any(key in image.info for key in XMP):
        image = image.copy()
        for key in XMP:
            image.info.pop(key, None)
    return ImageOps.exif_transpose(image)


def describe(image: object) -> str:
    """Name what an image is: type and shape of an array, or the type of another object."""
    if hasattr(image, "dtype") and hasattr(image, "shape"):
        return f"{getattr(image.dtype, 'name', image.dtype)} {list(image.shape)}"
    return f"'{type(image).__name__}'"
