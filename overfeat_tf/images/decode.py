"""Encoded image bytes -> RGB pixels as displayed, in stock graph operations, with a status in place of an error.

TensorFlow's own decoders read the pixels (except `_bmp`, for the palettes that TensorFlow ignores). An error
in one of them would fail the whole batch, and a graph cannot catch an error, with one exception: a tf.data pipeline may
ignore the errors of its elements. So each decoder runs as a pipeline of one element.
"""

import struct
from collections.abc import Callable

import tensorflow as tf

from overfeat_tf.images.headers import (
    KINDS,
    UNKNOWN,
    Header,
    cut,
    eager_header,
    noinline,
    number,
    read,
    read_header,
    read_kind,
)

# Admits the 50-megapixel photographs of phones (8160 x 6120): 150 MB of RGB, and 460 MB at the peak for a progressive
# JPEG, for each image decoded at a time. JPEG XL alone is not held by it: its frames may be larger than the picture.
MAX_PIXELS = 50_000_000

EXIF, ORIENTATION, SHORT, LONG = b"Exif\0\0", 0x0112, 3, 4
MAX_EXIF_ENTRIES = 512  # of 12 bytes; cameras write some 15 into the first directory

READ, EMPTY, STRANGE, SIZELESS, LARGE, DAMAGED = range(6)  # outcomes of an image


def decode_image(data: tf.Tensor, max_pixels: int = MAX_PIXELS) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the pixels of an encoded image as displayed (uint8 [H, W, 3], RGB) and its status (string []).

    `data` is a string []: JPEG, PNG, GIF (first frame), BMP, WebP (first frame) or JPEG XL. Gray becomes RGB, CMYK is
    converted, of 16 bits the upper 8 are kept, alpha is dropped (the colour beneath it shows), and the Exif orientation
    is applied. The status is empty where the image was read; else it says what was expected, what came and what to do,
    and the pixels are [0, 0, 3]. No bytes make it fail; images of more than `max_pixels` are refused unread.
    """
    return _decode_image(tf.ensure_shape(tf.convert_to_tensor(data, tf.string), []), tf.constant(max_pixels, tf.int64))


@tf.function(autograph=False)
def _decode_image(data: tf.Tensor, max_pixels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    # Strings live on the host: with a GPU, the small sums here would be copied there and back.
    with tf.device("/CPU:0"):
        kind = read_kind(data)
        header = read_header(data, kind)
        height, width = tf.unstack(header.size)
        problem = tf.where(height > max_pixels // tf.maximum(width, 1), LARGE, READ)  # a product might overflow
        problem = tf.where(tf.reduce_min(header.size) < 1, SIZELESS, problem)
        problem = tf.where(kind == UNKNOWN, STRANGE, problem)
        problem = tf.where(data == b"", EMPTY, problem)
        pixels = tf.cond(problem == READ, lambda: _read_pixels(header, kind), _no_pixels)
        problem = tf.where((problem == READ) & (tf.size(pixels) == 0), DAMAGED, problem)
        status = tf.cond(problem == READ, lambda: "", lambda: _explain(problem, data, kind, header, max_pixels))
        return tf.ensure_shape(pixels, [None, None, 3]), status


def read_size(data: bytes) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Return an encoded image's (height, width) as stored and as `decode_image` shows it, and its EXIF orientation.

    The header is read by the same rules as for decoding, so that the sizes agree whatever another library makes of it.

    Raises:
        ValueError: no image, or one whose size can't be told.
    """
    if found := eager_header(data):
        size, orientation = found[0], _eager_orientation(found[1])
    else:
        kind, size, orientation = (value.numpy() for value in _read_size(data))
        if KINDS[kind] == "JPEG XL":  # its decoder turns the picture upright by itself
            size, orientation = decode_image(data)[0].shape[:2], 1
        if kind == UNKNOWN or min(size) < 1:
            raise ValueError(f"{len(data)} bytes that are no image, or one that is damaged")
    height, width = map(int, size)
    shown = (width, height) if orientation >= 5 else (height, width)
    return (height, width), shown, int(orientation)


def _eager_orientation(exif: bytes) -> int:
    """Return what `_read_orientation` does, outside of the graph."""
    exif = exif.removeprefix(EXIF)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4], "")
    if not order:
        return 1

    def value(form: str, at: int) -> int:
        size = struct.calcsize(form)
        return struct.unpack(order + form, exif[at : at + size].ljust(size, b"\0"))[0]

    first, largest = value("I", 4) + 2, 0
    for at in range(first, first + 12 * min(value("H", first - 2), MAX_EXIF_ENTRIES), 12):
        tag, kind, count = value("H", at), value("H", at + 2), value("I", at + 4)
        if tag == ORIENTATION and count == 1 and kind in (SHORT, LONG):
            largest = max(largest, value("H" if kind == SHORT else "I", at + 8))
    return largest if 1 <= largest <= 8 else 1


@tf.function(autograph=False, input_signature=[tf.TensorSpec([], tf.string)])
def _read_size(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    with tf.device("/CPU:0"):
        kind = read_kind(data)
        header = read_header(data, kind)
        upright = tf.constant(1, tf.int64)
        return kind, header.size, tf.cond(header.exif == b"", lambda: upright, lambda: _read_orientation(header.exif))


def _no_pixels() -> tf.Tensor:
    return tf.zeros([0, 0, 3], tf.uint8)


@noinline
def _explain(problem: tf.Tensor, data: tf.Tensor, kind: tf.Tensor, header: Header, limit: tf.Tensor) -> tf.Tensor:
    """Return the status (string []) for a problem (int32 [])."""
    name = tf.gather(KINDS, kind)
    height, width, limit = map(tf.strings.as_string, (*tf.unstack(header.size), limit))
    count = tf.strings.as_string(tf.strings.length(data))
    size = tf.strings.join([name, " of ", height, " x ", width, " pixels (height x width)"])
    first = tf.strings.as_string(tf.io.decode_raw(tf.strings.substr(data, 0, 4), tf.uint8))
    first = tf.strings.reduce_join(first, separator=" ")  # as numbers: a status is text, whatever came
    raw = ": send the image file itself, as raw bytes"
    resend = ": send the whole file, or save it again as JPEG or PNG"
    lines = {
        READ: ["", ""],
        EMPTY: ["expected the bytes of an image file, got none", raw],
        STRANGE: ["expected JPEG, PNG, GIF, BMP, WebP or JPEG XL, got ", count, " bytes that begin with ", first, raw],
        SIZELESS: ["expected an image size, got ", count, " bytes of ", name, " without one", resend],
        LARGE: ["expected at most ", limit, " pixels, got a ", size, ": send a smaller one"],
        DAMAGED: ["damaged or truncated: expected a ", size, ", got ", count, " bytes that do not decode", resend],
    }
    return tf.switch_case(problem, [lambda line=line: tf.strings.join(line) for line in lines.values()])


def _read_pixels(header: Header, kind: tf.Tensor) -> tf.Tensor:
    """Return the pixels upright (uint8 [H, W, 3]), [0, 0, 3] where they do not decode."""
    encoded = header.encoded
    decoders = {
        # The default method is TensorFlow's fast one, off by up to 4 levels; this one is as fast today and exact.
        "JPEG": lambda: _attempt(lambda data: tf.io.decode_jpeg(data, 3, dct_method="INTEGER_ACCURATE"), encoded),
        "PNG": lambda: _attempt(lambda data: tf.io.decode_png(data, 3), encoded),
        "GIF": noinline(lambda: _place(_attempt(_any_channels, encoded), header)),
        "BMP": lambda: _attempt(_bmp, encoded),
        "WebP": noinline(lambda: _to_rgb(_attempt(_any_channels, encoded))),
        "JPEG XL": noinline(lambda: _to_rgb(_attempt(_any_channels, encoded))),
        "unknown": _no_pixels,
    }
    pixels = tf.switch_case(kind, [decoders[name] for name in KINDS])
    upright = (header.exif == b"") | (tf.size(pixels) == 0)  # Reverse refuses an empty image
    return tf.cond(upright, lambda: pixels, lambda: _turn_upright(pixels, header.exif))


def _attempt(decode: Callable[[tf.Tensor], tf.Tensor], encoded: tf.Tensor) -> tf.Tensor:
    """Return decode(encoded) (uint8 [H, W, C]) or, where that fails, [0, 0, 3].

    The pipeline is read by get_single_element because reduce costs some 5 ms more, on every image.
    """
    either = tf.data.Dataset.from_tensors(encoded).map(decode).ignore_errors()
    return either.concatenate(tf.data.Dataset.from_tensors(_no_pixels())).take(1).get_single_element()


def _any_channels(data: tf.Tensor) -> tf.Tensor:
    # Asked for 3 channels, the decoders of WebP and JPEG XL refuse gray and alpha.
    return tf.io.decode_image(data, channels=0, expand_animations=False)


def _to_rgb(pixels: tf.Tensor) -> tf.Tensor:
    """Return RGB (uint8 [H, W, 3]) from gray, gray and alpha, RGB, or RGB and alpha (uint8 [H, W, 1 to 4])."""
    gray = tf.shape(pixels)[2] < 3
    return tf.cond(gray, lambda: tf.repeat(pixels[..., :1], 3, axis=2), lambda: pixels[..., :3])


def _place(frame: tf.Tensor, header: Header) -> tf.Tensor:
    """Return a GIF's frame (uint8 [h, w, 3]) on its screen (uint8 [H, W, 3]), black around it."""
    before = header.corner
    after = tf.maximum(header.size - before - tf.shape(frame, tf.int64)[:2], 0)
    margins = tf.concat([tf.stack([before, after], axis=1), tf.zeros([1, 2], tf.int64)], axis=0)
    unchanged = (tf.size(frame) == 0) | (tf.reduce_max(margins) == 0)
    return tf.cond(unchanged, lambda: frame, lambda: tf.pad(frame, margins))


def _bmp(data: tf.Tensor) -> tf.Tensor:
    """Return the pixels (uint8 [H, W, 3]) of an uncompressed bitmap of 1, 4, 8 (palette), 24 or 32 bits a pixel.

    Raises InvalidArgumentError for other kinds and where bytes are missing. Written here because tf.io.decode_bmp
    returns palette indices as if they were gray, and refuses files with a byte too many.
    """
    start, length, width, height = tf.unstack(tf.concat([read(data, 10, 2, tf.int32), read(data, 18, 2, tf.int32)], 0))
    depth, compression = read(data, 28, 1, tf.uint16)[0], read(data, 30, 1, tf.int32)[0]
    usual_masks = (depth == 32) & tf.reduce_all(read(data, 54, 3, tf.int32) == [0xFF0000, 0xFF00, 0xFF])
    known = tf.reduce_any(depth == [1, 4, 8, 24, 32]) & ((compression == 0) | (compression == 3) & usual_masks)
    row, rows = (width * depth + 31) // 32 * 4, tf.abs(height)
    body = tf.io.decode_raw(tf.strings.substr(data, start, tf.where(known, rows * row, 0)), tf.uint8)
    body = tf.raw_ops.Reverse(tensor=tf.reshape(body, [rows, row]), dims=tf.stack([height > 0, False]))

    def from_palette():
        shifts = tf.cast(tf.range(8 - depth, -1, -depth), tf.uint8)
        mask = tf.cast(tf.bitwise.left_shift(tf.ones_like(depth), depth) - 1, tf.uint8)
        index = tf.bitwise.bitwise_and(tf.bitwise.right_shift(body[:, :, None], shifts), mask)
        palette = tf.reshape(tf.cast(read(data, 14 + length, 256 * 4), tf.uint8), [256, 4])
        return tf.gather(tf.reverse(palette[:, :3], [1]), tf.cast(tf.reshape(index, [rows, -1])[:, :width], tf.int32))

    def direct():
        pixels = tf.reshape(body[:, : width * (depth // 8)], [rows, width, depth // 8])
        return tf.reverse(pixels[:, :, :3], [2])

    return tf.ensure_shape(tf.cond(depth > 8, direct, from_palette), [None, None, 3])


def _read_orientation(exif: tf.Tensor) -> tf.Tensor:
    """Return the orientation (int64 [], 1 to 8) that an Exif block's first directory states; 1 where it states none."""
    exif = cut(exif, tf.where(tf.strings.substr(exif, 0, len(EXIF)) == EXIF, len(EXIF), 0))
    head = read(exif, 0, 8)
    little, big = (tf.reduce_all(head[:4] == [*mark]) for mark in (b"II*\0", b"MM\0*"))

    def value(digits):
        return number(tf.where(big, digits, digits[..., ::-1]))

    directory = value(head[4:])
    entries = tf.reshape(read(exif, directory + 2, MAX_EXIF_ENTRIES * 12), [MAX_EXIF_ENTRIES, 12])
    kind = value(entries[:, 2:4])
    stated = (
        (tf.range(MAX_EXIF_ENTRIES, dtype=tf.int64) < value(read(exif, directory, 2)))
        & (value(entries[:, :2]) == ORIENTATION)
        & (value(entries[:, 4:8]) == 1)
        & ((kind == SHORT) | (kind == LONG))
    )
    values = tf.where(kind == SHORT, value(entries[:, 8:10]), value(entries[:, 8:]))
    orientation = tf.reduce_max(tf.where(stated, values, 0))
    return tf.where((little | big) & (orientation >= 1) & (orientation <= 8), orientation, 1)


@noinline
def _turn_upright(pixels: tf.Tensor, exif: tf.Tensor) -> tf.Tensor:
    """Return pixels (uint8 [H, W, 3]) as displayed: by the orientation, mirrored in the diagonal, then in each axis."""
    orientation = _read_orientation(exif)
    down = tf.gather([False, False, False, True, True, False, False, True, True], orientation)
    right = tf.gather([False, False, True, True, False, False, True, True, False], orientation)
    pixels = tf.cond(orientation >= 5, lambda: tf.transpose(pixels, [1, 0, 2]), lambda: pixels)
    return tf.raw_ops.Reverse(tensor=pixels, dims=tf.stack([down, right, False]))
