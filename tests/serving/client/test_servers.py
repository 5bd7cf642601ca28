"""Several servers: requests spread over them, and none is lost or answered twice where one dies."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from itertools import islice

import grpc
import numpy as np
import pytest
from small_model import png
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from overfeat_tf.cli import predict
from overfeat_tf.cli.serving import ServerProcess
from serving.client.client import IN_FLIGHT, Client, ServingError
from serving.client.pipelining import BATCH_IMAGES, Unsent, in_order
from training.evaluation.evaluate import evaluate
from training.sources.record import Record


class _Echo(prediction_service_pb2_grpc.PredictionServiceServicer):
    """A server that answers with what it got, or refuses all, until it dies."""

    def __init__(self, seconds: float = 0.01, refusal: str = ""):
        self.seconds, self.refusal, self.calls = seconds, refusal, 0
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Predict(self, request, context):  # noqa: N802 - gRPC's name
        self.calls += 1
        time.sleep(self.seconds)
        if self.refusal:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.refusal)
        return predict_pb2.PredictResponse(outputs=request.inputs)

    def die(self) -> None:
        """End at once; running calls are cut off."""
        self._server.stop(None)


@contextlib.contextmanager
def _client(*servers: _Echo, **options) -> Iterator[Client]:
    with Client(",".join(server.address for server in servers), "m", **options) as client:
        yield client
    for server in servers:
        server.die()


def test_requests_are_spread_and_go_on_where_a_server_dies():
    servers = _Echo(), _Echo()
    with _client(*servers, timeout=10) as client:
        images = (Unsent(number, b"%d" % number) for number in range(400))
        answers = in_order(client.detect, images, client.concurrency)
        first = list(islice(answers, 160))
        assert client.concurrency == 2 * IN_FLIGHT and min(server.calls for server in servers) >= 5
        servers[0].die()
        calls = servers[1].calls
        rest = list(answers)
    # All that was left, but for the requests that were under way.
    assert servers[1].calls - calls >= len(rest) // BATCH_IMAGES - client.concurrency > 0
    assert [(sent.item, sent.outputs["image_bytes"], sent.problem) for sent in first + rest] == [
        (number, b"%d" % number, "") for number in range(400)
    ]


def test_a_server_that_hangs_is_left_for_another_and_one_that_refuses_is_not():
    with _client(_Echo(seconds=5), _Echo(), timeout=0.4) as client:
        assert [client.detect([b"x"])["image_bytes"].tolist() for _ in range(4)] == [[b"x"]] * 4
    with (
        _client(_Echo(refusal="no image"), _Echo()) as client,
        pytest.raises(ServingError, match="INVALID_ARGUMENT: no image"),
    ):
        for _ in range(2):
            client.detect([b"x"])


def test_without_any_server_the_error_names_one():
    servers = _Echo(), _Echo()
    with _client(*servers) as client:
        for server in servers:
            server.die()
        with pytest.raises(ServingError, match="UNAVAILABLE"):
            client.detect([b"x"])


@pytest.mark.parametrize("text", ["", "a:1,", ",", "localhost", "a:1,b"])
def test_an_address_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=r"^expected HOST:PORT, or several separated by commas; got"):
        Client(text, "m")


@dataclass
class _Greys:
    """Images of every grey, with a cat all over each."""

    class_names, splits, name, boxed = ("cat", "dog"), ("val",), "greys", True

    def records(self, split: str, limit: int | None = None) -> Iterator[Record]:
        for number in range(limit or 256):
            yield Record.of_objects(png(number), str(number), [[0, 0, 1, 1]], [1])


@pytest.mark.long
def test_processes_one_of_them_killed_lose_nothing(model_dir, tmp_path, monkeypatch):
    """`predict` and `evaluate` over two server processes, of which one is killed under way."""
    with ServerProcess(model_dir) as one, ServerProcess(model_dir) as other, ServerProcess(model_dir) as third:
        files = [tmp_path / f"{number:03}.png" for number in range(256)]
        for number, file in enumerate(files):
            file.write_bytes(png(number))
        drawn = []

        def kill_midway(*arguments, **options):
            drawn.append(1)
            if len(drawn) == 60:
                other._process.kill()
            return draw(*arguments, **options)

        draw, servers = predict.draw_boxes, f"{one.address},{other.address}"
        monkeypatch.setattr(predict, "draw_boxes", kill_midway)
        wanted = predict.Wanted(tmp_path / "out", tmp_path / "answers.json")
        assert predict.run("m", files, servers, wanted, None, {}) == 0 and not other.alive
        answers = json.loads((tmp_path / "answers.json").read_text())
        assert [answer["file"] for answer in answers] == [str(file) for file in files]
        scores = [answer["objects"][0]["score"] for answer in answers]
        np.testing.assert_allclose(scores, np.arange(256) / 255, atol=1e-6)

        seen, lock = [], threading.Lock()

        def kill_after(record: Record, answer: dict) -> None:
            with lock:
                seen.append((record.image_id, float(answer["detection_scores"][0])))
            if len(seen) == 60:
                third._process.kill()

        with Client(f"{third.address},{one.address}", "m") as client:
            figures = evaluate(client, _Greys(), "val", callbacks={"detection": [kill_after]}, quiet=True)
        assert not third.alive and figures["images"] == 256 and figures["map50"] == 1.0
        assert [name for name, _ in seen] == [str(number) for number in range(256)]
        np.testing.assert_allclose([score for _, score in seen], np.arange(256) / 255, atol=1e-6)
