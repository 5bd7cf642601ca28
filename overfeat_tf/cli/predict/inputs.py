"""What `predict` is given: image files, videos, cameras and images on standard input, as a stream of encoded images."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, NamedTuple

from overfeat_tf.images import video
from overfeat_tf.images.files import MAX_BYTES, SUFFIXES, decodable, find_files, read_image

STDIN = "-"
_LONGEST_HEADER = 4096  # bytes, comments included
# The header of a binary PGM or PPM, which may have comments between its numbers (Netpbm's `ppm`).
_NETPBM = re.compile(rb"P([56])" + rb"(?:\s|#[^\n]*\n)+(\d+)" * 3 + rb"\s")


class Input(NamedTuple):
    """An encoded image, or why there is none.

    Attributes:
        source: The file, camera or `-` that it comes from, as it was given.
        data: The encoded image; empty where there is a problem.
        problem: Why it cannot be read; empty where it can.
        number: Its number, from 1, in a video or on standard input; None for a file.
        fps: Of the video that it is from.
    """

    source: Path
    data: bytes
    problem: str = ""
    number: int | None = None
    fps: float | None = None

    @property
    def seconds(self) -> float | None:
        """Its time in the video."""
        return None if self.fps is None or self.number is None else (self.number - 1) / self.fps


def find_inputs(names: Sequence[str], out: Path) -> list[Path]:
    """List what the names stand for: files, folders, globs, `camera:0` and `-`, each once.

    The pictures that an earlier run drew into `out` are left out of a folder around it.

    Raises:
        ValueError: one of them matches no other file.
    """
    found: dict[str, Path] = {}
    for name in names:
        given = name == STDIN or name.startswith(video.CAMERA)
        sources = [Path(name)] if given else find_files([name], (*SUFFIXES, *video.SUFFIXES))
        if Path(os.path.abspath(name)) in (drawn := Path(os.path.abspath(out))).parents:
            sources = [source for source in sources if drawn not in Path(os.path.abspath(source)).parents]
            if not sources:
                raise ValueError(f"expected image files; '{name}' has none but those in '{out}', the --out")
        for source in sources:
            found.setdefault(name if given else os.path.abspath(source), source)
    return list(found.values())


@contextmanager
def spooled(names: Sequence[str]) -> Iterator[list[Path]]:
    """List image files as `find_files` does; images on standard input, `-`, become files for the time of the block."""
    with TemporaryDirectory(prefix="overfeat-") as folder:
        images = (data for name in names if name == STDIN for data in _split(sys.stdin.buffer))
        for number, data in enumerate(images, start=1):
            Path(folder, f"stdin_{number:06}.png").write_bytes(data)
        if STDIN in names and not any(Path(folder).iterdir()):
            raise ValueError("expected images on standard input; got none")
        yield find_files([folder if name == STDIN else name for name in names])


def is_moving(source: Path) -> bool:
    """Return whether a source is a video or a camera."""
    return str(source).startswith(video.CAMERA) or source.suffix.lower() in video.SUFFIXES


def read_inputs(sources: Sequence[Path], every: int = 1) -> Iterator[Input]:
    """Read images one after the other; `every` so many frames of a video."""
    for source in sources:
        if is_moving(source):
            yield from _frames(source, every)
        elif str(source) == STDIN:
            number = 0
            for number, part in enumerate(_split(sys.stdin.buffer), start=1):
                yield Input(source, *decodable(part), number)
            if number == 0:
                yield Input(source, b"", "expected images on standard input; got none")
        else:
            yield Input(source, *read_image(source))


def _frames(source: Path, every: int) -> Iterator[Input]:
    number = 0
    try:
        with video.Video(str(source)) as opened:
            for number, data in opened.frames(every):
                yield Input(source, data, "", number, opened.fps)
    except (ImportError, ValueError) as error:
        yield Input(source, b"", str(error))
        return
    if number == 0:
        yield Input(source, b"", "expected a video with frames; none can be read")


def _split(stream: BinaryIO) -> Iterator[bytes]:
    """Split a stream into images as they come: any number of binary PPM or PGM, or one of another kind."""
    while head := stream.read(1):
        if head in b"\0\r\n ":  # between images
            continue
        while head in (b"P", b"P5", b"P6") or (head[:2] in (b"P5", b"P6") and len(head) < _LONGEST_HEADER):
            if (header := _NETPBM.fullmatch(head)) or not (more := stream.read(1)):
                break
            head += more
        else:
            header = None
        if header is None:
            yield head + stream.read()
            return
        kind, width, height, most = (int(part) for part in header.groups())
        size = width * height * (3 if kind == 6 else 1) * (2 if most > 255 else 1)
        yield head + stream.read(min(size, MAX_BYTES))
