"""Pipelining of many images: several requests at a time, answers in order, errors per image."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import grpc
import numpy as np

from serving.client.client import IN_FLIGHT, ServingError

BATCH_IMAGES = 8  # as many as `batching_params.pbtxt` admits
BATCH_BYTES = 16 << 20  # of one request, unless a single image is larger

Outputs = dict[str, np.ndarray]
Call = Callable[[Sequence[bytes]], Outputs]


class Unsent(NamedTuple):
    """An image to send.

    Attributes:
        item: The caller's key.
        image: Its encoded bytes.
        problem: Why it is not sent; empty if it is.
    """

    item: Any
    image: bytes
    problem: str = ""


class Sent(NamedTuple):
    """An image and its answer.

    Attributes:
        item: The caller's key.
        image: Its encoded bytes.
        outputs: The answer by name, without the batch; empty if there is none.
        problem: Why there is no answer; empty if there is.
    """

    item: Any
    image: bytes
    outputs: Outputs
    problem: str = ""


def in_order(call: Call, images: Iterable[Unsent], in_flight: int = IN_FLIGHT) -> Iterator[Sent]:
    """Send images in batches, `in_flight` at a time, and yield them with their answers, in their order.

    At most `in_flight` batches are held, of `BATCH_BYTES` each or a single larger image. A request that is rejected for
    its content is sent again in parts, so that only the image at fault has no answer.

    Args:
        call: Such as `Client.detect`: called from several threads, never with an empty batch.
        images: Read no further than they are sent.
        in_flight: Concurrent requests.

    Raises:
        ServingError: the server is away or busy for longer than the client tries, or has no such model.
    """
    pool = ThreadPoolExecutor(in_flight, "request")
    waiting: deque[tuple[list[Unsent], Future[list[Sent]]]] = deque()
    try:
        for batch in _batches(images):
            waiting.append((batch, pool.submit(_answer, call, batch)))
            if len(waiting) == in_flight:
                yield from waiting.popleft()[1].result()
        while waiting:
            yield from waiting.popleft()[1].result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _batches(images: Iterable[Unsent]) -> Iterator[list[Unsent]]:
    """Group images by number and bytes; images that are not sent stay in their group, which keeps the order."""
    batch: list[Unsent] = []
    for image in images:
        size = sum(len(each.image) for each in (*batch, image))
        if batch and (len(batch) == BATCH_IMAGES or size > BATCH_BYTES):
            yield batch
            batch = []
        batch.append(image)
    if batch:
        yield batch


def _answer(call: Call, batch: list[Unsent]) -> list[Sent]:
    rows = iter(_rows(call, [each.image for each in batch if not each.problem]))
    return [
        Sent(each.item, each.image, {}, each.problem) if each.problem else Sent(each.item, each.image, *next(rows))
        for each in batch
    ]


def _rows(call: Call, images: Sequence[bytes]) -> list[tuple[Outputs, str]]:
    """Return the outputs for each image, or why there are none."""
    if not images:
        return []
    try:
        outputs = call(images)
    except ServingError as error:
        if not error.about_the_request:
            raise
        if len(images) == 1:
            return [({}, error.details)]
        # A message too large to be received does not tell the limit: send the images one by one.
        size = 1 if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED else len(images) // 2
        return [row for first in range(0, len(images), size) for row in _rows(call, images[first : first + size])]
    return [({key: values[row] for key, values in outputs.items()}, "") for row in range(len(images))]
