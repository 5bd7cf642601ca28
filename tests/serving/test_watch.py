"""What nobody waits for any more stops running: past its deadline, or with its client gone, alone or in a batch."""

import threading
import time
from concurrent import futures

import grpc
import httpx
import numpy as np
import pytest
from gated_model import function_models
from stock_requests import good_request, predict_request
from tensorflow_serving.apis import prediction_service_pb2_grpc

from serving.embedded.batching_options import BatchingOptions
from serving.embedded.door import Door
from serving.embedded.server import Server
from serving.refusal import Refusal
from serving.rest.server import RestServer

BATCHING = BatchingOptions(max_batch_size=4, num_batch_threads=1)
LONG = 60.0


def _spin(seconds: float):
    return predict_request("spin", seconds=np.array([seconds], np.float32))


@pytest.fixture(scope="module", params=[None, BATCHING], ids=["alone", "batching"])
def spinning(server, request):
    """Serves the same models, without batching and with it, on one thread."""
    with Server(server.models, port=0, workers=1, batching=request.param) as one:
        yield one


@pytest.fixture
def ask(spinning):
    with grpc.insecure_channel(spinning.address) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict


def test_a_run_past_its_deadline_is_cut_off(spinning, ask):
    with pytest.raises(grpc.RpcError) as late:
        ask(_spin(LONG), timeout=0.3)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert spinning.door.wait_idle(5)
    assert ask(good_request(), timeout=10).outputs


def test_a_run_whose_client_is_gone_is_cut_off(spinning, ask):
    running = ask.future(_spin(LONG), timeout=2 * LONG)
    time.sleep(0.3)
    running.cancel()
    assert ask(good_request(), timeout=10).outputs  # the one thread is free again
    assert spinning.door.wait_idle(5)


def test_a_batch_runs_on_for_the_one_who_still_waits(spinning, ask):
    first = ask.future(_spin(0.5), timeout=20)
    time.sleep(0.2)
    left, stays = ask.future(_spin(1.0), timeout=0.8), ask.future(_spin(1.0), timeout=20)
    assert first.result().outputs and stays.result().outputs
    assert left.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_the_door_says_why_a_run_ended(server):
    door = Door(server.models, 1 << 20)
    gone = threading.Event()
    with futures.ThreadPoolExecutor(3) as threads:
        late = threads.submit(door.predict, _spin(LONG), time.monotonic() + 0.3)
        left = threads.submit(door.predict, _spin(LONG), time.monotonic() + LONG, gone.is_set)
        stays = threads.submit(door.predict, _spin(1.0), time.monotonic() + LONG)
        with pytest.raises(Refusal, match="DEADLINE_EXCEEDED"):
            late.result(5)
        gone.set()
        with pytest.raises(Refusal, match="CANCELLED"):
            left.result(5)
        assert stays.result(20).outputs  # each thread's run is its own


def test_over_rest_too(server):
    with RestServer(server.door, port=0, timeout=0.3) as rest:
        body = {"signature_name": "spin", "inputs": [LONG]}
        answer = httpx.post(f"{rest.url}/v1/models/m:predict", json=body, timeout=20)
    assert (answer.status_code, answer.json()) == (504, {"error": "Deadline Exceeded"})


def test_what_is_no_graph_is_answered_late_but_answered():
    door = Door(function_models(lambda x: (time.sleep(0.3), {"y": x})[1]), 1 << 20)
    assert door.predict(predict_request(x=np.ones(1, np.float32)), time.monotonic() + 0.1).outputs
