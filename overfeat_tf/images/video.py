"""Videos and cameras, by OpenCV: read as encoded images, and written with pictures."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
CAMERA = "camera:"  # before a camera's number
DEFAULT_FPS = 25.0  # where a camera does not say


class Video(AbstractContextManager):
    """A video file or a camera, `camera:0`, that is open for reading.

    Attributes:
        fps: Frames a second.
        count: How many frames there are, if known.

    Raises:
        ImportError: OpenCV is not installed.
        ValueError: it cannot be opened.
    """

    def __init__(self, name: str):
        self._cv2, self._name = opencv(), name
        number = name.removeprefix(CAMERA)
        if number != name and not number.isdecimal():
            raise ValueError(f"expected a camera's number, such as {CAMERA}0; got '{name}'")
        self._capture = self._cv2.VideoCapture(name if number == name else int(number))
        if not self._capture.isOpened():
            self._capture.release()
            raise ValueError(f"expected a video or a camera that OpenCV can open; it cannot open '{name}'")
        self.fps = self._capture.get(self._cv2.CAP_PROP_FPS) or DEFAULT_FPS
        count = int(self._capture.get(self._cv2.CAP_PROP_FRAME_COUNT))
        self.count = count if count > 0 and number == name else None

    def frames(self, every: int = 1) -> Iterator[tuple[int, bytes]]:
        """Yield every so many frames: their numbers, from 1, and the frames as PNG."""
        number = 0
        while self._capture.grab():
            number += 1
            if (number - 1) % every == 0:
                read, pixels = self._capture.retrieve()
                if read:
                    fast = [self._cv2.IMWRITE_PNG_COMPRESSION, 1]
                    yield number, self._cv2.imencode(".png", pixels, fast)[1].tobytes()

    def __exit__(self, *_: Any) -> None:
        self._capture.release()


class VideoWriter:
    """A video file that is made of pictures of one size, RGB uint8 [H, W, 3], and made with the first one."""

    def __init__(self, path: Path, fps: float):
        self._cv2, self._path, self._fps = opencv(), path, fps
        self._writer: Any = None

    def write(self, picture: np.ndarray) -> None:
        """Add a picture; raise OSError if the file cannot be written."""
        if self._writer is None:
            size = picture.shape[1::-1]
            code = self._cv2.VideoWriter_fourcc(*"mp4v")
            self._writer = self._cv2.VideoWriter(str(self._path), code, self._fps, size)
            if not self._writer.isOpened():
                raise OSError(f"cannot write the video '{self._path}'")
        self._writer.write(self._cv2.cvtColor(picture, self._cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Write the rest and close the file."""
        if self._writer is not None:
            self._writer.release()


def opencv() -> Any:
    """Return OpenCV's module; raise ImportError if it is not installed."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError("expected OpenCV, to read videos and cameras: pip install opencv-python-headless") from error
    return cv2
