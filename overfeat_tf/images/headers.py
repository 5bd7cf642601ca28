"""Read the header of an encoded image with stock graph operations, before anything is decoded.

A decoder trusts the header and allocates what it claims; TensorFlow's GIF decoder also unpacks every frame, and its
decoder of animated WebP writes past its buffer where the file has no alpha flag (TensorFlow 2.21: heap corruption). So
the header is read here first, and the decoder gets no more than one still picture of a known size.

Reading never fails: bytes past the end read as zeros, so a truncated header is a wrong header. Every loop is bounded.
`eager_header` alone is Python, for whoever reads the sizes of many files.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf


class Header(NamedTuple):
    """The header of an encoded image, and the one picture in it to decode."""

    encoded: tf.Tensor  # string []: the bytes for the decoder; empty where that picture does not end
    size: tf.Tensor  # int64 [2]: height and width in pixels as stored; not positive where none was found
    corner: tf.Tensor  # int64 [2]: top and left of the decoded picture within that size (a GIF frame may be smaller)
    exif: tf.Tensor  # string []: the Exif block, empty where there is none


def noinline(function: Callable) -> Callable:
    """Make a tf.function that is not inlined: an inlined one runs through each operation of a branch not taken.

    TensorFlow has no other name for it than this attribute, which `experimental_attributes` admits; asked for in
    https://github.com/tensorflow/tensorflow/issues/47269.
    """
    return tf.function(function, autograph=False, experimental_attributes={"_noinline": True})


def make_header(encoded: tf.Tensor, size, exif=b"", corner=(0, 0)) -> Header:
    """Make a Header; size and corner may be pairs."""
    size, corner = (tf.convert_to_tensor(pair, tf.int64) for pair in (size, corner))
    return Header(tf.identity(encoded), size, corner, tf.convert_to_tensor(exif))


def cut(data: tf.Tensor, at, length=2**31 - 1) -> tf.Tensor:
    """Return up to `length` bytes of a string [] from byte `at`, either of which may lie outside it."""
    at, length = (tf.maximum(tf.cast(n, tf.int64), 0) for n in (at, length))
    return tf.strings.substr(data, tf.minimum(at, tf.cast(tf.strings.length(data), tf.int64)), length)


def read(data: tf.Tensor, at, count: int, dtype: tf.DType = tf.uint8, big_endian: bool = False) -> tf.Tensor:
    """Return `count` numbers as int64 [count] from byte `at` of a string []; zeros past its end."""
    length = count * dtype.size
    numbers = tf.io.decode_raw(cut(data, at, length), dtype, little_endian=not big_endian, fixed_length=length)
    return tf.cast(numbers, tf.int64)


def number(digits: tf.Tensor) -> tf.Tensor:
    """Return int64 [...]: the number that bytes (int64 [..., n]) spell, the highest first."""
    return tf.reduce_sum(digits * [256**n for n in reversed(range(digits.shape[-1]))], axis=-1)


ANY = -1
# The first bytes of each format; the last row fits everything. JPEG XL comes bare or in a container of boxes.
MAGIC: tuple[tuple[str, list[int]], ...] = (
    ("JPEG", [0xFF, 0xD8, 0xFF]),
    ("PNG", [*b"\x89PNG\r\n\x1a\n"]),
    ("GIF", [*b"GIF8"]),
    ("BMP", [*b"BM"]),
    ("WebP", [*b"RIFF", ANY, ANY, ANY, ANY, *b"WEBP"]),
    ("JPEG XL", [0xFF, 0x0A]),
    ("JPEG XL", [*b"\0\0\0\x0cJXL \r\n\x87\n"]),
    ("unknown", []),
)
KINDS = tuple(name for name, _ in MAGIC)
UNKNOWN = KINDS.index("unknown")
_MAGIC_BYTES = np.array([magic + [ANY] * (12 - len(magic)) for _, magic in MAGIC], np.int64)

MAX_CHUNKS = 64  # before the picture of a PNG or JPEG XL, and in a WebP: a handful in practice
MAX_GIF_STEPS = 4096  # a step passes up to GIF_WINDOW bytes of data blocks of one length, the way encoders write them
GIF_WINDOW = 16_384

_JXL_RATIOS = np.array([(0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1)])  # width : height, by code


def read_kind(data: tf.Tensor) -> tf.Tensor:
    """Return the int32 [] index into KINDS of encoded image bytes (string []), by their first bytes."""
    fits = (read(data, 0, 12) == _MAGIC_BYTES) | (_MAGIC_BYTES == ANY)
    return tf.argmax(tf.reduce_all(fits, axis=1), output_type=tf.int32)  # the first row that fits


def read_header(data: tf.Tensor, kind: tf.Tensor) -> Header:
    """Return the Header of encoded image bytes (string []) of a kind (int32 [], an index into KINDS); never fail."""
    readers = (read_jpeg_header, _png, _gif, _bmp, _webp, _jxl, _jxl_container, lambda data: make_header(data, (0, 0)))
    return tf.switch_case(kind, [lambda reader=reader: reader(data) for reader in readers])


def _spell(name: bytes) -> int:
    return int.from_bytes(name, "big")


def _find(data: tf.Tensor, names: list[bytes], layout: Callable, start: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Walk chunks from byte `start` to the first of the names; return that name as a number, its place and length.

    `layout` reads a chunk's first eight bytes (int64 [8]) into its name, its content's length and the way to the next.
    Name and length are 0 where there is none of the names.
    """

    def walk(at, *_):
        name, length, step = layout(read(data, at, 8))
        found = tf.reduce_any(name == [_spell(each) for each in names])
        going = ~found & (name > 0) & (step >= 8)
        return at + tf.where(~found, step, 8), tf.where(found, name, 0), length, going

    zero = tf.constant(0, tf.int64)
    begin = (zero + start, zero, zero, tf.constant(True))
    at, name, length, _ = tf.while_loop(lambda *state: state[-1], walk, begin, maximum_iterations=MAX_CHUNKS)
    return name, at, tf.where(name > 0, length, 0)


@noinline
def _png(data: tf.Tensor) -> Header:
    def layout(head):
        return number(head[4:]), number(head[:4]), number(head[:4]) + 12

    first, name, width, height = tf.unstack(read(data, 8, 4, tf.int32, big_endian=True))
    # A size counts only in its proper place: a decoder may skip another chunk and find a second size.
    proper = tf.cast((first == 13) & (name == _spell(b"IHDR")), tf.int64)
    name, at, length = _find(data, [b"eXIf", b"IDAT"], layout, start=8)
    exif = cut(data, at, tf.where(name == _spell(b"eXIf"), length, 0))
    return make_header(data, (height * proper, width * proper), exif)


@noinline
def _webp(data: tf.Tensor) -> Header:
    def layout(head):
        length = number(head[7:3:-1])
        return number(head[:4]), length, length + length % 2 + 8

    name, flags = read(data, 12, 1, tf.int32, big_endian=True)[0], read(data, 20, 1)[0]
    extended, lossless, lossy = (read(data, at, 1, tf.int64)[0] for at in (24, 21, 26))
    sizes = {  # width and height in bits of a little-endian number
        b"VP8X": (extended % 2**24 + 1, extended // 2**24 % 2**24 + 1),
        b"VP8L": (lossless % 2**14 + 1, lossless // 2**14 % 2**14 + 1),
        b"VP8 ": (lossy % 2**14, lossy // 2**16 % 2**14),
    }
    size = sum(tf.where(name == _spell(chunk), tf.stack(size), 0) for chunk, size in sizes.items())
    flags = tf.where(name == _spell(b"VP8X"), flags, 0)
    # TensorFlow unpacks an animation as RGBA but makes room for RGB where the alpha flag is not set, so it is set here.
    still = flags // 2 % 2 == 0
    encoded = tf.cond(still, lambda: data, lambda: tf.strings.join([cut(data, 0, 20), b"\x12", cut(data, 21)]))
    name, at, length = _find(data, [b"EXIF"], layout, start=12)
    exif = cut(data, at, tf.where(flags // 8 % 2 == 1, length, 0))
    return make_header(encoded, size[::-1], exif)


@noinline
def _bmp(data: tf.Tensor) -> Header:
    """Read the size of a Windows bitmap, whose height is negative where the rows go down; not OS/2's shorter header."""
    length, width, height = tf.unstack(read(data, 14, 3, tf.int32))
    proper = tf.cast(length >= 40, tf.int64)
    return make_header(data, (tf.abs(height) * proper, width * proper))


@noinline
def _jxl(data: tf.Tensor, stream: tf.Tensor | None = None) -> Header:
    """Read the size of a JPEG XL codestream, a number of bits; its decoder turns the picture upright by itself."""
    stream = data if stream is None else stream
    bits = read(stream, 2, 1, tf.int64)[0]
    small = bits % 2

    def side(bits):
        """Return one side's length and the count of its bits."""
        wide = tf.gather(tf.constant([9, 13, 18, 30], tf.int64), bits % 4)
        value = bits // 4 % tf.bitwise.left_shift(tf.ones_like(wide), wide) + 1
        return tf.where(small == 1, (bits % 32 + 1) * 8, value), tf.where(small == 0, 2 + wide, 5)

    height, height_bits = side(bits // 2)
    bits = tf.bitwise.right_shift(bits, 1 + height_bits)
    ratio = bits % 8
    width, width_bits = side(bits // 8)
    over, under = tf.unstack(tf.gather(_JXL_RATIOS, ratio))
    width = tf.where(ratio == 0, width, height * over // under)
    used = 1 + height_bits + 3 + tf.where(ratio == 0, width_bits, 0)
    # At most 64 bits are read, and none past a piece of the stream: a longer size counts as missing.
    there = tf.minimum(8 * tf.cast(tf.strings.length(stream), tf.int64) - 16, 64)
    proper = tf.cast(used <= there, tf.int64)
    return make_header(data, (height * proper, width * proper))


@noinline
def _jxl_container(data: tf.Tensor) -> Header:
    def layout(head):
        length = number(head[:4])
        return number(head[4:]), tf.where(length == 0, tf.constant(2**31, tf.int64), length - 8), length

    name, at, length = _find(data, [b"jxlc", b"jxlp"], layout, start=0)
    index = tf.where(name == _spell(b"jxlp"), tf.constant(4, tf.int64), 0)  # a piece begins with its number
    return _jxl(data, cut(data, at + index, tf.minimum(length - index, 16)))


@noinline
def _gif(data: tf.Tensor) -> Header:
    """Cut a GIF down to its first frame, without the extensions (so a transparent pixel shows its palette colour)."""
    screen = read(data, 6, 2, tf.uint16)[::-1]
    between, extension, picture, complete, broken = (tf.constant(n, tf.int64) for n in range(5))

    def palette(flags):
        return tf.where(flags >= 128, 3 * tf.bitwise.left_shift(tf.constant(2, tf.int64), flags % 8), 0)

    def next_block(at, frame, head):
        is_frame, is_extension = head[0] == ord(","), head[0] == ord("!")
        step = tf.where(is_frame, 10 + palette(head[9]) + 1, 2)
        state = tf.where(is_frame, picture, tf.where(is_extension, extension, broken))
        return at + step, tf.where(is_frame, at, frame), state

    def next_data(at, frame, state, window):
        """Pass as many data blocks as are of the same length, or the empty one that ends them."""
        block = window[0] + 1
        lengths = tf.gather(window, tf.range(0, tf.size(window, tf.int64), block))
        run = tf.argmax(tf.cast(lengths != window[0], tf.uint8))
        after = tf.where(state == picture, complete, between)
        ends = window[0] == 0
        return at + tf.where(~ends, run * block, 1), frame, tf.where(ends, after, state)

    def walk(at, frame, state):
        # The zeros behind the window break off a run of blocks, and end the walk at the end of the data.
        window = tf.cast(tf.io.decode_raw(cut(data, at, GIF_WINDOW) + b"\0" * 256, tf.uint8), tf.int64)
        return tf.cond(
            state == between, lambda: next_block(at, frame, window), lambda: next_data(at, frame, state, window)
        )

    start = 13 + palette(read(data, 10, 1)[0])
    begin = (start, tf.zeros_like(start), between)
    after, frame, state = tf.while_loop(lambda *now: now[-1] < complete, walk, begin, maximum_iterations=MAX_GIF_STEPS)
    left, top, width, height = tf.unstack(read(data, frame + 1, 4, tf.uint16) * tf.cast(frame > 0, tf.int64))
    # The frame goes to the decoder as if at the corner: beyond its own size the decoder would cut it off.
    still = tf.strings.join([cut(data, 0, start), b",\0\0\0\0", cut(data, frame + 5, after - frame - 5), b";"])
    size = tf.maximum(screen, tf.stack([top + height, left + width]))
    return make_header(tf.where(state == complete, still, b""), size, corner=(top, left))


MAX_SEGMENTS = 512  # in a JPEG; a colour profile alone may take 255
GLANCE, GLANCED_SEGMENTS = 4096, 8  # bytes and segments before the frame header of most JPEGs; a loop takes longer
SIZE_ENDS = 9  # bytes into the frame header
APP1 = 0xFFE1  # the marker of Exif, and of XMP

_SEGMENT, _ALONE, _FILL, _SIZE, _STOP = range(5)  # what a JPEG marker is to the walk below, which ends with two
_MARKERS = np.full(256, _SEGMENT)
_MARKERS[[n for n in range(0xC0, 0xD0) if n not in (0xC4, 0xC8, 0xCC)]] = _SIZE
_MARKERS[[0x01, *range(0xD0, 0xD8)]] = _ALONE
_MARKERS[0xFF] = _FILL
_MARKERS[[0x00, 0xD8, 0xD9, 0xDA]] = _STOP


def read_jpeg_header(data: tf.Tensor) -> Header:
    """Find the frame header (SOF: the size) and the first Exif segment; at a glance where a few segments lead there."""
    start = read(cut(data, 0, GLANCE), 0, GLANCE + 10)  # what leads out of the bytes that are read leads to zeros
    pairs = start[:-1] * 256 + start[1:]
    following = tf.minimum(tf.range(2, GLANCE, dtype=tf.int64) + pairs[2:GLANCE], GLANCE)
    places = [tf.constant(2, tf.int64)]
    for _ in range(GLANCED_SEGMENTS):
        places.append(tf.gather(following, tf.minimum(places[-1], GLANCE - 3)))
    places = tf.stack(places)
    markers = tf.gather(pairs, places)
    kinds = tf.gather(_MARKERS, tf.maximum(markers - 0xFF00, 0))
    last = tf.argmax(kinds != _SEGMENT)
    within = places[last] <= GLANCE - SIZE_ENDS
    leads = within & (kinds[last] == _SIZE) & tf.reduce_all(markers[:last] != APP1)
    size = tf.gather(pairs, places[last] + [5, 7])
    return tf.cond(leads, lambda: make_header(data, size), lambda: _walk_jpeg(data))


@noinline
def _walk_jpeg(data: tf.Tensor) -> Header:
    """Walk the markers to the frame header, noting the first Exif segment on the way."""

    def walk(at, _, exif):
        marker, length = tf.unstack(read(data, at, 2, tf.uint16, big_endian=True))
        kind = tf.gather(_MARKERS, tf.maximum(marker - 0xFF00, 0))
        is_exif = (marker == APP1) & (cut(data, at + 4, 6) == b"Exif\0\0") & (exif == 0)
        step = tf.gather(tf.constant([2, 2, 1, 0, 0], tf.int64), kind) + tf.where(kind == _SEGMENT, length, 0)
        return at + step, kind, tf.where(is_exif, at, exif)

    begin = tf.constant(2, tf.int64), tf.constant(_SEGMENT, tf.int64), tf.constant(0, tf.int64)
    at, kind, exif = tf.while_loop(lambda _, kind, __: kind < _SIZE, walk, begin, maximum_iterations=MAX_SEGMENTS)
    size = read(data, at + 5, 2, tf.uint16, big_endian=True) * tf.cast(kind == _SIZE, tf.int64)
    length = read(data, exif + 2, 1, tf.uint16, big_endian=True)[0]
    return make_header(data, size, cut(data, exif + 4, tf.where(exif > 0, length - 2, 0)))


def eager_header(data: bytes) -> tuple[tuple[int, int], bytes] | None:
    """Return the (height, width) and the Exif block of a JPEG or PNG, read outside of the graph; None for others.

    The walks are those of `read_header`, and take a twentieth of the time of a call of TensorFlow.
    """
    walk = {b"\xff\xd8\xff": _eager_jpeg, b"\x89PN": _eager_png}.get(data[:3])
    try:
        found = walk(data) if walk else None
    except struct.error:  # past the end
        return None
    return found if found and min(found[0]) > 0 else None


def _eager_jpeg(data: bytes) -> tuple[tuple[int, int], bytes] | None:
    at, exif = 2, b""
    for _ in range(MAX_SEGMENTS):
        marker, length = struct.unpack_from(">HH", data, at)
        kind = _MARKERS[max(marker - 0xFF00, 0)]
        if kind == _SIZE:
            return struct.unpack_from(">HH", data, at + 5), exif
        if kind == _STOP:
            return None
        if marker == APP1 and not exif and data[at + 4 : at + 10] == b"Exif\0\0":
            exif = data[at + 4 : at + 2 + length]
        at += (2 + length, 2, 1)[kind]
    return None


def _eager_png(data: bytes) -> tuple[tuple[int, int], bytes] | None:
    first, name, width, height = struct.unpack_from(">I4sii", data, 8)
    if (first, name, data[:8]) != (13, b"IHDR", bytes(MAGIC[1][1])):
        return None
    at = 8
    for _ in range(MAX_CHUNKS):
        length, name = struct.unpack_from(">I4s", data, at)
        if name in (b"IDAT", b"eXIf"):
            return (height, width), data[at + 8 : at + 8 + length] if name == b"eXIf" else b""
        at += length + 12
    return None
