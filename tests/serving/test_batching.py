"""Batching across requests: the answers are those without it, and nobody fails for another's sake."""

import gc
import threading
import time
import weakref
from concurrent import futures

import grpc
import numpy as np
import pytest
import tensorflow as tf
from small_model import png
from stock_requests import asking, call, predict_request, tensor_proto

from serving.embedded import batching_options
from serving.embedded.batching import Batcher
from serving.embedded.batching_options import BatchingOptions
from serving.embedded.server import start
from serving.refusal import Refusal


class _Doubling:
    """Doubles rows once it may, notes the size of each run, and fails where there is a number below 0."""

    def __init__(self):
        self.may_run = threading.Event()
        self.runs: list[int] = []

    def __call__(self, x):
        self.runs.append(len(x))
        assert self.may_run.wait(20)
        if tf.reduce_min(x) < 0:
            raise tf.errors.InvalidArgumentError(None, None, f"{tf.reduce_min(x).numpy():.0f} is below 0")
        return {"y": 2 * x}


def _batcher(**options) -> Batcher:
    return Batcher(BatchingOptions(**({"max_batch_size": 8, "num_batch_threads": 1} | options)))


def _until_waiting(batcher: Batcher, number: int) -> None:
    end = time.monotonic() + 20
    while batcher.waiting != number:
        assert time.monotonic() < end
        time.sleep(0.005)


def _queue(batcher: Batcher, function, clients, inputs, **options) -> list[futures.Future]:
    """Occupies the only thread with a request of its own, and lets the others gather behind it."""
    found = []
    for number, values in enumerate([[0.0], *inputs]):
        x = tf.constant(values, tf.float32)
        found.append(clients.submit(batcher.run, "key", function, {"x": x}, **(options if number else {})))
        _until_waiting(batcher, number)
        while not function.runs:
            time.sleep(0.005)
    return found


@pytest.fixture
def clients():
    with futures.ThreadPoolExecutor(12) as pool:
        yield pool


def test_requests_that_wait_run_together_and_get_their_own_rows(clients):
    batcher, function = _batcher(), _Doubling()
    waiting = _queue(batcher, function, clients, [[1.0], [2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    function.may_run.set()
    answers = [each.result(20)["y"].tolist() for each in waiting]
    assert answers == [[0.0], [2.0], [4.0, 6.0], [8.0, 10.0, 12.0], [14.0, 16.0, 18.0]]
    assert function.runs == [1, 6, 3]  # the last three found the batch of eight too full
    batcher.close()


def test_a_failing_request_fails_alone(clients):
    batcher, function = _batcher(), _Doubling()
    waiting = _queue(batcher, function, clients, [[1.0], [-7.0], [3.0]])
    function.may_run.set()
    with pytest.raises(tf.errors.InvalidArgumentError, match="-7 is below 0"):
        waiting[2].result(20)
    assert [waiting[number].result(20)["y"].tolist() for number in (1, 3)] == [[2.0], [6.0]]
    assert function.runs == [1, 3, 1, 1, 1]
    batcher.close()


def test_a_function_whose_rows_are_not_its_inputs_runs_each_alone(clients):
    batcher, function = _batcher(), _Doubling()

    def first_row(x):
        return {"y": function(x)["y"][:1]}

    first_row.runs = function.runs  # type: ignore[attr-defined]
    waiting = _queue(batcher, first_row, clients, [[1.0], [2.0]])
    function.may_run.set()
    assert [each.result(20)["y"].tolist() for each in waiting] == [[0.0], [2.0], [4.0]]
    batcher.close()


def test_too_large_a_request_one_without_rows_and_a_full_queue_are_refused(clients):
    batcher, function = _batcher(max_batch_size=2, max_enqueued_batches=1), _Doubling()
    with pytest.raises(Refusal, match="INVALID_ARGUMENT: Task size 3 is larger than maximum input batch size 2"):
        batcher.run("key", function, {"x": tf.zeros([3])})
    with pytest.raises(Refusal, match=r"INVALID_ARGUMENT: Batching Run\(\) input tensors must have at least one dim"):
        batcher.run("key", function, {"x": tf.constant(1.0)})
    waiting = _queue(batcher, function, clients, [[1.0], [2.0]])
    with pytest.raises(Refusal) as full:
        batcher.run("another", function, {"x": tf.zeros([1])})
    assert full.value.code is grpc.StatusCode.UNAVAILABLE
    assert full.value.message == "The batch scheduling queue to which this task was submitted is full"
    function.may_run.set()
    assert [each.result(20)["y"].tolist() for each in waiting] == [[0.0], [2.0], [4.0]]
    batcher.close()


def test_who_has_given_up_is_not_run(clients):
    batcher, function = _batcher(), _Doubling()
    left = threading.Event()
    late = _queue(batcher, function, clients, [[1.0]], deadline=time.monotonic() + 0.2)[1]
    gone = clients.submit(batcher.run, "key", function, {"x": tf.zeros([1])}, None, left.is_set)
    _until_waiting(batcher, 2)
    left.set()
    with pytest.raises(Refusal, match="DEADLINE_EXCEEDED"):
        late.result(20)
    function.may_run.set()
    with pytest.raises(Refusal, match="CANCELLED"):
        gone.result(20)
    assert batcher.run("key", function, {"x": tf.ones([2])})["y"].tolist() == [2.0, 2.0]
    assert function.runs == [1, 2]
    batcher.close()


def test_a_request_waits_for_company_as_long_as_told():
    batcher, function = _batcher(batch_timeout_micros=300_000, max_batch_size=2), _Doubling()
    function.may_run.set()
    begun = time.monotonic()
    batcher.run("key", function, {"x": tf.ones([1])})
    assert time.monotonic() - begun >= 0.3
    begun = time.monotonic()
    batcher.run("key", function, {"x": tf.ones([2])})  # full: nobody else fits
    assert time.monotonic() - begun < 0.3
    batcher.close()


def test_nothing_is_held_once_it_is_answered(clients):
    batcher, function = _batcher(), _Doubling()
    function.may_run.set()
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(tf.errors.InvalidArgumentError):
            batcher.run(function, function, {"x": tf.constant([-1.0])})
        held = weakref.ref(function)
        del function
        end = time.monotonic() + 5
        while held() is not None and time.monotonic() < end:
            time.sleep(0.01)
        assert held() is None
    finally:
        gc.enable()
        batcher.close()


@pytest.fixture(scope="module")
def batched(model_dir, max_bytes):
    options = BatchingOptions(max_batch_size=8, num_batch_threads=2, batch_timeout_micros=20_000)
    with (
        start([model_dir], port=0, max_message_bytes=max_bytes, batching=options) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        yield channel


def test_answers_equal_those_without_batching(batched, channel, clients):
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(1, 4, 6, 3)
    requests = [
        *(predict_request(image_bytes=[png(10 * n)] * (1 + n % 3)) for n in range(12)),
        *(predict_request("detect_images", images=pixels[:, : 2 + n % 2]) for n in range(6)),
        *(asking(predict_request("detect", image_bytes=[png(n)]), output_filter=["detection_scores"]) for n in (1, 2)),
        predict_request(image_bytes=tensor_proto(tf.string, [0])),  # TF Serving never answers these
    ]
    together = list(clients.map(lambda request: call(batched, "Predict", request), requests))
    assert together == [call(channel, "Predict", request) for request in requests]


def test_over_the_wire_a_bad_image_fails_its_own_request_alone(batched, clients):
    good, bad = predict_request(image_bytes=[png()]), predict_request(image_bytes=[b"no image"])

    def code(request) -> grpc.StatusCode:
        try:
            call(batched, "Predict", request)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    codes = list(clients.map(code, [good, bad, good, bad, good, good]))
    ok, invalid = grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT
    assert codes == [ok, invalid, ok, invalid, ok, ok]


def test_over_the_wire_too_large_a_batch_is_refused_as_tf_serving_does(batched):
    with pytest.raises(grpc.RpcError) as refused:
        call(batched, "Predict", predict_request(image_bytes=[png()] * 9))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == "Task size 9 is larger than maximum input batch size 8"


def test_parameters_are_read_as_tf_serving_reads_them(tmp_path):
    file = tmp_path / "batching.config"
    file.write_text(
        "max_batch_size { value: 8 }\nbatch_timeout_micros { value: 500 }\nnum_batch_threads { value: 3 }\n"
        "allowed_batch_sizes: 1\nallowed_batch_sizes: 8\n"
    )
    assert batching_options.from_file(file) == BatchingOptions(8, 500, 10, 3, (1, 8))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_sise { value: 8 }", "max_batch_sise"),
        ("max_batch_size { value: 0 }", "expected max_batch_size of at least 1, got 0"),
        ("max_batch_size { value: 8 } allowed_batch_sizes: 4", "rise up to max_batch_size, 8; got 4"),
        ("pad_variable_length_inputs: true", "expected no pad_variable_length_inputs"),
    ],
)
def test_parameters_that_cannot_be_are_refused_in_a_line(tmp_path, text, message):
    file = tmp_path / "batching.config"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        batching_options.from_file(file)
    assert len(str(caught.value).splitlines()) == 1
