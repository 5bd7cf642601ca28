"""Many images through a server: order, bounds, and that a fault stays with its image."""

import threading
import time

import grpc
import numpy as np
import pytest

from serving.client import pipelining as pipeline
from serving.client.client import ServingError
from serving.client.pipelining import BATCH_IMAGES, IN_FLIGHT, Unsent, in_order


class _Server:
    """Answers a batch with its images' lengths; refuses what it is told to; counts what is on the way."""

    def __init__(self, refuse=lambda images: None, seconds=0.0):
        self.refuse, self.seconds = refuse, seconds
        self.batches, self.now, self.most = [], 0, 0
        self.lock = threading.Lock()

    def __call__(self, images):
        with self.lock:
            self.batches.append(len(images))
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self.seconds)
        with self.lock:
            self.now -= 1
        code = self.refuse(images)
        if code:
            raise ServingError("h:1", *code)
        return {"length": np.array([len(image) for image in images])}


def _images(count: int) -> list[Unsent]:
    return [Unsent(number, bytes(number + 1)) for number in range(count)]


def test_answers_come_in_order_with_several_requests_on_the_way():
    server, read = _Server(seconds=0.02), []

    def images():
        for image in _images(100):
            read.append(image.item)
            yield image

    answers = in_order(server, images())
    first = next(answers)
    assert (first.item, first.outputs["length"], first.problem) == (0, 1, "")
    assert len(read) <= IN_FLIGHT * BATCH_IMAGES + 1  # no further ahead than what is on the way
    assert [(sent.item, int(sent.outputs["length"])) for sent in answers] == [(n, n + 1) for n in range(1, 100)]
    assert 1 < server.most <= IN_FLIGHT
    assert server.batches == [BATCH_IMAGES] * 12 + [4]


def test_what_could_not_be_read_is_not_sent_and_keeps_its_place():
    server = _Server()
    images = [Unsent(n, b"" if n % 3 else b"x" * n, "gone" if n % 3 else "") for n in range(20)]
    answers = list(in_order(server, images))
    assert [sent.item for sent in answers] == list(range(20))
    assert [sent.problem for sent in answers] == ["gone" if n % 3 else "" for n in range(20)]
    assert [int(sent.outputs["length"]) for sent in answers if not sent.problem] == list(range(0, 20, 3))
    assert sum(server.batches) == 7


def test_an_empty_batch_is_never_sent():
    server = _Server()
    assert list(in_order(server, [])) == []
    assert len(list(in_order(server, [Unsent(n, b"", "gone") for n in range(20)]))) == 20
    assert server.batches == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "not an image"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (9 vs. 4)"),
    ],
)
def test_a_refused_image_costs_its_own_answer_alone(code, words):
    bad = {3, 11}
    server = _Server(lambda images: (code, words) if bad & {len(image) - 1 for image in images} else None)
    answers = list(in_order(server, _images(16)))
    assert {sent.item: sent.problem for sent in answers if sent.problem} == dict.fromkeys(bad, words)
    assert all(sent.outputs["length"] == sent.item + 1 for sent in answers if not sent.problem)


def test_a_server_that_takes_smaller_batches_gets_them():
    refusal = grpc.StatusCode.INVALID_ARGUMENT, "Task size 8 is larger than maximum input batch size 3"
    server = _Server(lambda images: refusal if len(images) > 3 else None)
    assert not any(sent.problem for sent in in_order(server, _images(16)))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (grpc.StatusCode.UNAVAILABLE, "away"),
        (grpc.StatusCode.NOT_FOUND, "no such model"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, ""),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Thread pool is full"),
    ],
)
def test_a_fault_of_the_server_ends_it(code, words):
    server = _Server(lambda images: (code, words))
    with pytest.raises(ServingError, match=code.name):
        list(in_order(server, _images(1000)))
    assert len(server.batches) <= 2 * IN_FLIGHT  # what waits is not sent any more


def test_requests_are_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr(pipeline, "BATCH_BYTES", 100)
    server = _Server()
    sizes = [40, 40, 40, 300, 10, 90, 1]
    answers = list(in_order(server, [Unsent(size, bytes(size)) for size in sizes], in_flight=1))
    assert [int(sent.outputs["length"]) for sent in answers] == sizes
    assert server.batches == [2, 1, 1, 2, 1]
