"""Damaged data: noise, flipped bytes, and image files of a few bytes that declare billions of pixels."""

import struct
import zlib

import numpy as np


def noise(rng: np.random.Generator, most: int) -> bytes:
    """Make up to so many random bytes."""
    return rng.bytes(int(rng.integers(most + 1)))


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Change one to sixteen bytes."""
    changed = np.frombuffer(data, np.uint8).copy()
    places = rng.integers(0, len(changed), rng.integers(1, 17))
    changed[places] = rng.integers(0, 256, len(places))
    return changed.tobytes()


def png(side: int) -> bytes:
    """Declare a PNG of side x side pixels, with the first few of them compressed."""
    pixels = zlib.compress(bytes(1 << 20), 9)
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def gif(side: int) -> bytes:
    """Declare a GIF as large as one can be, up to side x side pixels."""
    size = struct.pack("<HH", min(side, 65535), min(side, 65535))
    frame = b"," + bytes(4) + size + b"\0" + b"\x02\x02\x4c\x01\0"
    return b"GIF89a" + size + b"\x80\0\0" + bytes(6) + frame + b";"


def bmp(side: int) -> bytes:
    """Declare a BMP of side x side pixels, without them."""
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
