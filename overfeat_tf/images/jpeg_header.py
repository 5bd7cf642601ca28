"""Reading the header of a JPEG: its size, and the Exif block on the way there."""

import numpy as np
import tensorflow as tf

from overfeat_tf.images.header_bytes import Header, cut, header, read, seldom

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
    return tf.cond(leads, lambda: header(data, size), lambda: _walk(data))


@seldom
def _walk(data: tf.Tensor) -> Header:
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
    return header(data, size, cut(data, exif + 4, tf.where(exif > 0, length - 2, 0)))
