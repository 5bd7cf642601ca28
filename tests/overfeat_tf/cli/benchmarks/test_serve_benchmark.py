"""The serving benchmark: its figures, its hostile requests, and that it drives a real server and judges it."""

import asyncio
import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import predict_pb2

from overfeat_tf.cli.benchmarks.harness import Report
from overfeat_tf.cli.benchmarks.serving import hostile, load
from overfeat_tf.cli.benchmarks.serving import measure as serving
from overfeat_tf.cli.benchmarks.serving.hostile import Call, HostileRequests, attack
from overfeat_tf.cli.benchmarks.serving.load import Load, LoadStats, percentile
from overfeat_tf.cli.benchmarks.serving.measure import BATCH_IMAGES, ROUND_SECONDS, OneClient, compare_batches
from overfeat_tf.images.decode import decode_image
from serving.embedded.server import start
from serving.export.exporter import BATCHING


class Bright(tf.Module):
    """Answers `detect` with an image's mean, and a status where it cannot be read."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def detect(self, image_bytes):
        def one(data):
            image, status = decode_image(data)
            return tf.reduce_sum(tf.cast(image, tf.float32)), status

        scores, status = tf.map_fn(one, image_bytes, fn_output_signature=(tf.float32, tf.string))
        return {"detection_scores": scores, "status": status}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    """Export the model as version 1, with what an export brings."""
    model_dir = tmp_path_factory.mktemp("models") / "bright"
    model = Bright()
    tf.saved_model.save(model, str(model_dir / "1"), {"detect": model.detect})
    (model_dir / "1" / "batching_params.pbtxt").write_text(BATCHING)
    return model_dir


@pytest.fixture(scope="module")
def request_of_one(model_dir) -> predict_pb2.PredictRequest:
    return serving.detection_request(model_dir, image())


def image() -> bytes:
    return tf.io.encode_jpeg(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).numpy()


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (1, 1), (50, 50), (99, 99), (99.1, 100), (100, 100)])
def test_a_percentile_is_one_of_the_values(percent, expected):
    assert percentile(list(range(100, 0, -1)), percent) == expected


def test_no_value_has_no_percentile():
    with pytest.raises(ValueError, match="no request was answered"):
        percentile([], 50)


def test_what_was_seen_adds_up():
    both = LoadStats(2.0, [0.1, 0.2], {"UNAVAILABLE": 1}, {"1": 2}) + LoadStats(
        1.0, [0.3], {"UNAVAILABLE": 2}, {"2": 1}
    )
    assert both == LoadStats(3.0, [0.1, 0.2, 0.3], {"UNAVAILABLE": 3}, {"1": 2, "2": 1})
    assert both.rate == 1.0
    assert serving._batching_gain(both, LoadStats(2.0, [0.1] * 4)) == BATCH_IMAGES / 2


def test_the_two_kinds_of_load_take_turns():
    ran = []

    class Fake:
        def run(self, address, seconds):
            ran.append(self)
            return LoadStats(seconds, [0.1])

    batched, single = Fake(), Fake()
    rounds = list(compare_batches(batched, single, "", 2 * ROUND_SECONDS))
    assert ran == [batched, single, single, batched]
    assert [each[batched].seconds for each in rounds] == [ROUND_SECONDS] * 2


def test_clients_do_not_wait_for_a_server_that_is_gone(request_of_one, monkeypatch):
    monkeypatch.setattr(load, "TIMEOUT_SECONDS", 0.5)
    with pytest.raises(TimeoutError):
        asyncio.run(load._drive(request_of_one, 1, "127.0.0.1:1", 1.0, threading.Event()))


def test_the_ratios_of_one_client_are_the_worst_presets():
    report = Report("serve", {})
    found = {"a": [OneClient(9.0, 0.03, 0.02, 0.01, "")], "b": [OneClient(9.0, 0.206, 0.103, 0.1, "loaded in 4.0 s")]}
    serving._add_one_client(report, found)
    ratios = report.as_dict()["serve"]["ratios"]
    assert ratios["p50_of_in_process"] == pytest.approx(2.0)
    assert ratios["p50_of_bound"] == pytest.approx(0.02 / 0.0135)
    assert ratios["first_of_steady"] == pytest.approx(2.0)
    assert "| b | 9.0 | loaded in 4.0 s | 206.0 | 103.0 | 100.0 | 108.0 |" in report.table()


def test_hostile_requests_are_seeded_and_of_every_kind(request_of_one):
    requests, again = (HostileRequests(request_of_one, image()) for _ in range(2))
    calls = [requests.call(number) for number in range(100)]
    assert calls == [again.call(number) for number in range(100)]
    assert len({call.kind for call in calls}) == 14
    (oversized,) = (call for call in calls if call.kind == "oversized")
    assert len(oversized.body) > 4 << 20
    bombs = [predict_pb2.PredictRequest.FromString(call.body) for call in calls if call.kind == "bomb"]
    assert all(len(each.inputs["image_bytes"].string_val[0]) < 5000 for each in bombs)
    with pytest.raises(DecodeError):
        for call in calls:
            if call.kind == "noise as message" and call.target == "Predict":
                predict_pb2.PredictRequest.FromString(call.body)


@pytest.mark.parametrize("bomb", [hostile.png, hostile.gif, hostile.bmp])
def test_a_bomb_declares_more_pixels_than_are_decoded(bomb):
    _, status = decode_image(tf.constant(bomb(20_000)))
    assert status.numpy().startswith(b"expected at most 50000000 pixels"), status


def test_what_is_not_answered_properly_is_found(model_dir, request_of_one):
    good = Call("good", "Predict", request_of_one.SerializeToString())
    with start([model_dir], port=0) as server:
        outcome = attack(server.address, "127.0.0.1:1", [good, good._replace(kind="rest", target="/v1")])
    assert outcome.count == 2 and outcome.statuses["good"] == {"OK": 1}
    (line,) = outcome.failures  # nobody listens on that port
    assert line.startswith("rest: ConnectionRefusedError")
    gone = attack("127.0.0.1:1", "127.0.0.1:1", [good])
    assert gone.failures[0].startswith("good: UNAVAILABLE")  # a server that crashed says nothing else


def test_clients_of_their_own_process_see_every_answer(model_dir, request_of_one):
    with start([model_dir], port=0) as server, Load(request_of_one, 4) as clients:
        seen = clients.run(server.address, 0.5)
        assert len(seen.latencies) == seen.versions["1"] >= 4 and not seen.failures
        assert 0.5 <= seen.seconds < 10 and all(0 < each < seen.seconds for each in seen.latencies)
        clients.begin(server.address)
        assert clients.end().failures == {}


@pytest.mark.long
def test_what_is_only_started_tells_its_loading_and_warming_up(model_dir, monkeypatch):
    monkeypatch.setattr(serving, "export_detector", lambda name, folder: folder / name)
    report = Report("serve", {})
    serving._add_starts(report, ["bright"], model_dir.parent)
    row = report.tables[0].splitlines()[-1]
    assert re.fullmatch(r"\| bright \| \d+\.\d \| loaded in .+ s, warmed up in .+ \(0 requests\) \|", row), row


@pytest.mark.long
def test_an_image_that_was_not_read_is_a_failure(model_dir, request_of_one):
    bad = predict_pb2.PredictRequest.FromString(request_of_one.SerializeToString())
    bad.inputs["image_bytes"].string_val[0] = b"no image"
    with start([model_dir], port=0) as server, Load(bad, 2) as clients:
        seen = clients.run(server.address, 0.5)
    assert seen.latencies == [] and seen.failures["status"] >= 2


@pytest.mark.long
def test_a_small_model_is_measured_whole(model_dir, monkeypatch):
    monkeypatch.setattr(serving, "WARM_ATTACKS", 200)
    report = serving.measure((), model_dir, load_seconds=2, clients=4, repetitions=1, attacks=200)
    found = json.loads(json.dumps(report.as_dict()))["serve"]["ratios"]
    assert set(found) >= {"p50_of_in_process", "batching_gain", "p99_of_p50", "first_of_steady"}
    assert found["failed_requests"] == 0 and found["hostile_improper"] == 0, report.table()
    assert found["batching_gain"] > 0.2 and found["p99_of_p50"] >= 1 and 0.5 < found["hostile_memory"] < 1.5
