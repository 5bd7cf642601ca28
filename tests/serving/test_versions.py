"""The life of versions: new ones are switched to under load, broken ones reported, old ones let go."""

import contextlib
import gc
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from small_model import png
from stock_requests import call, good_request, predict_request, status_request, write_warmup
from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2
from tensorflow_serving.config import model_server_config_pb2

from serving.configuration import ServedModel, from_directories
from serving.loading import LoadError
from serving.refusal import Refusal
from serving.servables import Models
from serving.server import Server, start
from serving.versions import Keeper

State = get_model_status_pb2.ModelVersionStatus
POLL = 0.05


def _put(model_dir: Path, base: Path, version: int, source: int = 1) -> Path:
    """Puts a version in place as an export does: beside first, then by its name."""
    beside = base / f"{version}.partial"
    shutil.copytree(model_dir / str(source), beside)
    return beside.rename(base / str(version))


def _until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def _states(channel: grpc.Channel, model: str = "m") -> dict[int, int]:
    found = call(channel, "GetModelStatus", status_request(model)).model_version_status
    return {each.version: each.state for each in found}


class _Load:
    """Clients that ask without a pause, each answer's version and each failure noted."""

    def __init__(self, address: str, clients: int = 4):
        self.versions: list[int] = []
        self.failures: list[grpc.RpcError] = []
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(address,)) for _ in range(clients)]

    def _ask(self, address: str) -> None:
        with grpc.insecure_channel(address) as channel:
            while not self._end.is_set():
                try:
                    self.versions.append(call(channel, "Predict", good_request()).model_spec.version.value)
                except grpc.RpcError as error:
                    self.failures.append(error)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        for thread in self._threads:
            thread.join()


@contextlib.contextmanager
def _served(base: Path, **options) -> Iterator[tuple[Server, grpc.Channel]]:
    with (
        start([base], port=0, poll_seconds=POLL, **options) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        yield server, channel


@pytest.fixture
def base(model_dir, tmp_path) -> Path:
    """Makes a model's directory with version 1."""
    (tmp_path / "m").mkdir()
    _put(model_dir, tmp_path / "m", 1)
    return tmp_path / "m"


def test_under_load_a_new_version_is_switched_to_and_a_broken_one_is_not(model_dir, base):
    with _served(base) as (server, channel), _Load(server.address) as load:
        _until(lambda: len(load.versions) > 20)
        broken = _put(model_dir, base, 2)
        (broken / "saved_model.pb").write_bytes(b"\xff not a model")
        _until(lambda: _states(channel).get(2) == State.END)
        told = call(channel, "GetModelStatus", status_request(version=2)).model_version_status[0].status
        _put(model_dir, base, 3, source=2)
        _until(lambda: 3 in load.versions[-1:])
        _until(lambda: _states(channel)[1] == State.END)
        assert _states(channel) == {3: State.AVAILABLE, 2: State.END, 1: State.END}
    assert load.failures == []
    assert (told.error_code, "2/saved_model.pb is not a SavedModel" in told.error_message) == (2, True)
    assert set(load.versions) == {1, 3}
    assert load.versions[-1] == 3


def test_a_version_that_is_let_go_is_freed_after_its_last_request(model_dir, base):
    with _served(base) as (server, channel):
        old = weakref.ref(server.models.served("m")[1])
        held = server.models.find(good_request())  # as a request that is under way
        _put(model_dir, base, 2)
        _until(lambda: _states(channel).get(2) == State.AVAILABLE)
        _until(lambda: _states(channel)[1] == State.UNLOADING)
        assert old() is held
        del held
        gc.collect()
        _until(lambda: _states(channel)[1] == State.END)
        assert old() is None


def test_a_broken_version_is_tried_again_once_it_changes(model_dir, base, caplog):
    keeper = Keeper(Models(), 1 << 20)
    models = keeper._models
    broken = _put(model_dir, base, 2)
    whole = (broken / "saved_model.pb").read_bytes()
    (broken / "saved_model.pb").write_bytes(whole[:-100])
    keeper.start(from_directories([base]))
    keeper.close()  # from here on the test looks, no thread
    for _ in range(3):
        keeper.look()
    assert models.loaded == [("m", 1)]
    assert [record.getMessage().startswith("m version 2 is broken") for record in caplog.records] == [True]
    (broken / "saved_model.pb").write_bytes(whole)
    keeper.look()  # sees the change
    assert models.loaded == [("m", 1)]
    keeper.look()  # sees that it goes no further
    assert models.loaded == [("m", 2)]


def test_what_is_still_written_is_left_alone_and_what_disappears_stays_served(model_dir, base):
    keeper = Keeper(Models(), 1 << 20)
    keeper.start(from_directories([base]))
    keeper.close()
    growing = base / "2"
    shutil.copytree(model_dir / "2", growing, ignore=shutil.ignore_patterns("variables", "assets.extra"))
    keeper.look()
    shutil.copytree(model_dir / "2" / "variables", growing / "variables")
    keeper.look()
    assert keeper._models.loaded == [("m", 1)]
    keeper.look()
    assert keeper._models.loaded == [("m", 2)]
    shutil.rmtree(growing)  # a roll back
    keeper.look(), keeper.look()
    assert keeper._models.loaded == [("m", 1)]
    shutil.rmtree(base)  # an unmounted disk
    keeper.look()
    assert keeper._models.loaded == [("m", 1)]


def test_a_failing_warm_up_request_keeps_a_version_out(model_dir, base):
    bad = _put(model_dir, base, 2)
    write_warmup(bad, predict_request("detect", image_bytes=[png()]), predict_request("detect", image_bytes=[b"no"]))
    shutil.rmtree(base / "1")
    with pytest.raises(LoadError, match="failed at record 2: Unknown image file format"):
        start([base], port=0)


def test_a_model_that_is_not_there_yet_is_waited_for(model_dir, tmp_path, caplog):
    base = tmp_path / "late"
    threading.Timer(0.3, lambda: (base.mkdir(), _put(model_dir, base, 1))).start()
    with _served(base, wait=True) as (server, _):
        assert server.models.loaded == [("late", 1)]
    assert sum("waiting for late" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        ({}, {12}),
        ({"latest": {"num_versions": 2}}, {9, 12}),
        ({"all": {}}, {1, 9, 12}),
        ({"specific": {"versions": [1, 9, 40]}}, {1, 9}),
    ],
)
def test_policies_choose_versions_by_number(policy, wanted):
    config = model_server_config_pb2.ModelConfig(model_version_policy=policy)
    assert ServedModel("m", Path("/m"), config.model_version_policy).wanted({9, 12, 1}) == wanted


def _reload(channel: grpc.Channel, *models: dict):
    config = {"model_config_list": {"config": models}}
    return call(channel, "HandleReloadConfigRequest", model_management_pb2.ReloadConfigRequest(config=config))


def test_reload_replaces_the_whole_configuration(model_dir, base, tmp_path):
    _put(model_dir, base, 2, source=2)
    everything = {"name": "m", "base_path": str(base), "model_version_policy": {"all": {}}}
    with _served(base) as (server, channel):
        # Another model, another policy and labels, in one request.
        response = _reload(
            channel,
            {**everything, "version_labels": {"stable": 1, "canary": 2}},
            {"name": "n", "base_path": str(model_dir), "model_version_policy": {"specific": {"versions": [1]}}},
        )
        assert response.status.error_code == 0
        assert server.models.loaded == [("m", 1), ("m", 2), ("n", 1)]
        assert call(channel, "Predict", good_request(label="stable")).model_spec.version.value == 1
        # A label to a version that is not there changes nothing.
        with pytest.raises(grpc.RpcError) as refused:
            _reload(channel, {**everything, "version_labels": {"stable": 7}})
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert refused.value.details() == (
            "Request to assign label to version 7 of model m, which is not currently available for inference"
        )
        assert server.models.loaded == [("m", 1), ("m", 2), ("n", 1)]
        assert call(channel, "Predict", good_request(label="canary")).model_spec.version.value == 2
        # A path that is not there is answered OK and leaves what is loaded; what is not named goes.
        _reload(channel, {**everything, "base_path": str(tmp_path / "nowhere")})
        assert server.models.loaded == [("m", 1), ("m", 2)]
        with pytest.raises(grpc.RpcError) as unlabelled:
            call(channel, "Predict", good_request(label="stable"))
        assert unlabelled.value.details() == "Unrecognized servable version label: stable"
        # An empty list unloads.
        request = model_management_pb2.ReloadConfigRequest()
        request.config.model_config_list.SetInParent()
        call(channel, "HandleReloadConfigRequest", request)
        with pytest.raises(grpc.RpcError) as nothing:
            call(channel, "Predict", good_request())
        assert nothing.value.code() is grpc.StatusCode.NOT_FOUND
        assert set(_states(channel).values()) <= {State.UNLOADING, State.END}


def test_reload_says_what_could_not_be_loaded(base, tmp_path):
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "saved_model.pb").write_bytes(b"\xff")
    keep = {"name": "m", "base_path": str(base)}
    with _served(base) as (server, channel):
        with pytest.raises(grpc.RpcError) as failed:
            _reload(channel, keep, {"name": "broken", "base_path": str(tmp_path / "broken")})
        assert failed.value.code() is grpc.StatusCode.UNKNOWN
        assert failed.value.details().startswith("1 servable(s) did not become available: {")
        assert server.models.loaded == [("m", 1)]
        for config, message in [
            ([keep, keep], "Illegal to list model m multiple times in config list"),
            (
                [{"name": "m", "base_path": "models/m"}],
                "Expected model m to have an absolute path or URI; got base_path()=models/m",
            ),
        ]:
            with pytest.raises(grpc.RpcError) as refused:
                _reload(channel, *config)
            assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, message)


def test_reload_of_the_same_models_from_elsewhere_switches_without_a_gap(model_dir, base, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    _put(model_dir, other, 1, source=2)
    with _served(base) as (server, channel), _Load(server.address, clients=2) as load:
        before = server.models.find(good_request())
        _until(lambda: len(load.versions) > 5)
        _reload(channel, {"name": "m", "base_path": str(other)})
        assert server.models.find(good_request()) is not before
    assert load.failures == []


def test_a_label_is_refused_by_name_where_its_version_is_gone(model_dir, base):
    models = Models()
    keeper = Keeper(models, 1 << 20)
    _put(model_dir, base, 2, source=2)
    keeper.start(from_directories([base], all_versions=True, labels={"m": {"stable": 1}}))
    keeper.close()
    shutil.rmtree(base / "1")
    keeper.look()
    with pytest.raises(Refusal, match=r"NOT_FOUND: Servable not found for request: Specific\(m, 1\)"):
        models.find(good_request(label="stable"))
