"""The life of versions: new ones are switched to under load, broken ones reported, old ones let go."""

import gc
import shutil
import threading
import weakref
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from small_model import png
from stock_requests import call, good_request, predict_request, status_request, write_warmup
from tensorflow_serving.apis import model_management_pb2
from tensorflow_serving.config import model_server_config_pb2
from version_life import Load, State, put, served, states
from waiting import until

from serving.embedded import server as server_module
from serving.embedded import version_manager
from serving.embedded.config import ServedModel, VersionPolicy, from_directories
from serving.embedded.servables import Models
from serving.embedded.server import Server, start
from serving.embedded.version_manager import VersionManager
from serving.errors import StatusError
from serving.version_folders import LoadError


@pytest.fixture
def base(model_dir, tmp_path) -> Path:
    """Makes a model's directory with version 1."""
    (tmp_path / "m").mkdir()
    put(model_dir, tmp_path / "m", 1)
    return tmp_path / "m"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("saved_model.pb", b"\xff not a model", "2/saved_model.pb is not a SavedModel"),
        ("variables/variables.index", b"", "2 cannot be loaded"),
    ],
)
def test_under_load_a_new_version_is_switched_to_and_a_broken_one_is_not(model_dir, base, file, content, message):
    with served(base) as (server, channel), Load(server.address) as load:
        until(lambda: len(load.versions) > 20)
        put(model_dir, base, 2, changed={file: content})
        until(lambda: states(channel).get(2) == State.END)
        told = call(channel, "GetModelStatus", status_request(version=2)).model_version_status[0].status
        put(model_dir, base, 3, source=2)
        until(lambda: 3 in load.versions[-1:])
        until(lambda: states(channel)[1] == State.END)
        assert states(channel) == {3: State.AVAILABLE, 2: State.END, 1: State.END}
    assert load.failures == []
    assert (told.error_code, message in told.error_message) == (2, True)
    assert set(load.versions) == {1, 3}
    assert load.versions[-1] == 3


def test_a_version_that_is_let_go_is_freed_after_its_last_request(model_dir, base):
    with served(base) as (server, channel):
        old = weakref.ref(server.models.served("m")[1])
        held = server.models.find(good_request())  # as a request that is under way
        put(model_dir, base, 2)
        until(lambda: states(channel).get(2) == State.AVAILABLE)
        until(lambda: states(channel)[1] == State.UNLOADING)
        assert old() is held
        del held
        gc.collect()
        until(lambda: states(channel)[1] == State.END)
        assert old() is None


def test_a_broken_version_is_tried_again_once_it_changes(model_dir, base, caplog):
    manager = VersionManager(Models(), 1 << 20)
    models = manager._models
    broken = put(model_dir, base, 2)
    whole = (broken / "saved_model.pb").read_bytes()
    (broken / "saved_model.pb").write_bytes(whole[:-100])
    manager.start(from_directories([base]))
    manager.close()  # from here on the test looks, no thread
    for _ in range(3):
        manager.poll()
    assert models.loaded == [("m", 1)]
    assert [record.getMessage().startswith("m version 2 failed to load") for record in caplog.records] == [True]
    (broken / "saved_model.pb").write_bytes(whole)
    manager.poll()  # sees the change
    assert models.loaded == [("m", 1)]
    manager.poll()  # sees that it goes no further
    assert models.loaded == [("m", 2)]


def test_what_is_still_written_is_left_alone_and_what_disappears_stays_served(model_dir, base):
    manager = VersionManager(Models(), 1 << 20)
    manager.start(from_directories([base]))
    manager.close()
    growing = base / "2"
    shutil.copytree(model_dir / "2", growing, ignore=shutil.ignore_patterns("variables", "assets.extra"))
    manager.poll()
    shutil.copytree(model_dir / "2" / "variables", growing / "variables")
    manager.poll()
    assert manager._models.loaded == [("m", 1)]
    manager.poll()
    assert manager._models.loaded == [("m", 2)]
    shutil.rmtree(growing)  # a roll back
    manager.poll(), manager.poll()
    assert manager._models.loaded == [("m", 1)]
    shutil.rmtree(base)  # an unmounted disk
    manager.poll()
    assert manager._models.loaded == [("m", 1)]


def test_a_failing_warm_up_request_keeps_a_version_out(model_dir, base):
    bad = put(model_dir, base, 2)
    write_warmup(bad, predict_request("detect", image_bytes=[png()]), predict_request("detect", image_bytes=[b"no"]))
    shutil.rmtree(base / "1")
    with pytest.raises(LoadError, match="failed at record 2: Unknown image file format"):
        start([base], port=0)
    with start([base], port=0, warm=False) as server:
        assert server.models.loaded == [("m", 2)]


def test_the_ports_open_at_once_and_report_loading_until_the_model_is_ready(base, monkeypatch):
    may_load, load, found, servers = threading.Event(), version_manager.load_version, {}, []

    def gated(*args):
        assert may_load.wait(20)
        return load(*args)

    def notes(*args, **options):
        servers.append(Server(*args, **options))
        return servers[0]

    monkeypatch.setattr(version_manager, "load_version", gated)
    monkeypatch.setattr(server_module, "Server", notes)
    threading.Thread(target=lambda: found.update(server=start([base], port=0, rest_port=0, warm=False))).start()
    until(lambda: servers and servers[0].rest)
    server = servers[0]
    with grpc.insecure_channel(server.address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        until(lambda: states(channel) == {1: State.LOADING})
        assert check(health_pb2.HealthCheckRequest(), timeout=10).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError) as refused:
            call(channel, "Predict", good_request())
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE  # clients retry it
        with pytest.raises(grpc.RpcError, match=r"UNAVAILABLE.*\n.*the server is still loading its models"):
            call(channel, "HandleReloadConfigRequest", model_management_pb2.ReloadConfigRequest())
        assert "LOADING" in httpx.get(f"{server.rest.url}/v1/models/m").text
        assert httpx.post(f"{server.rest.url}/v1/models/m:predict", json={"inputs": [1]}).status_code == 503
        may_load.set()
        until(lambda: "server" in found)
        assert states(channel) == {1: State.AVAILABLE}
        assert check(health_pb2.HealthCheckRequest(), timeout=10).status == health_pb2.HealthCheckResponse.SERVING
        assert call(channel, "Predict", good_request()).outputs
    found["server"].stop()


def test_a_missing_model_does_not_hold_back_the_others(base, model_dir, tmp_path):
    manager = VersionManager(models := Models(), 1 << 20, poll_seconds=0.05)
    wanted = from_directories([tmp_path / "late", base])
    threading.Thread(target=manager.start, args=(wanted, True), daemon=True).start()
    until(lambda: models.loaded == [("m", 1)], 10)
    (tmp_path / "late").mkdir()
    put(model_dir, tmp_path / "late", 1)
    until(lambda: models.loaded == [("late", 1), ("m", 1)])
    manager.close()


def test_a_model_that_is_not_there_yet_is_waited_for(model_dir, tmp_path, caplog):
    base = tmp_path / "late"
    threading.Timer(0.3, lambda: (base.mkdir(), put(model_dir, base, 1))).start()
    with served(base, wait=True) as (server, _):
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


def test_a_label_names_its_version_once_that_is_repaired(model_dir, base, caplog):
    manager = VersionManager(models := Models(), 1 << 20)
    graph = put(model_dir, base, 2, changed={"saved_model.pb": b"\xff"}) / "saved_model.pb"
    policy = VersionPolicy(all=VersionPolicy.All())
    manager.start([ServedModel("m", base, policy, {"stable": 1, "canary": 2})])
    manager.close()
    assert models.loaded == [("m", 1)] and models.labels("m") == {"stable": 1}
    assert "m: label canary names version 2, not served" in caplog.messages
    with pytest.raises(StatusError, match="INVALID_ARGUMENT: Unrecognized servable version label: canary"):
        models.find(good_request(label="canary"))
    graph.write_bytes((model_dir / "2" / "saved_model.pb").read_bytes())
    manager.poll(), manager.poll()
    assert models.find(good_request(label="canary")).version == 2


def test_a_label_is_refused_by_name_where_its_version_is_gone(model_dir, base):
    models = Models()
    manager = VersionManager(models, 1 << 20)
    put(model_dir, base, 2, source=2)
    policy = VersionPolicy(all=VersionPolicy.All())
    manager.start([ServedModel("m", base, policy, {"stable": 1})])
    manager.close()
    shutil.rmtree(base / "1")
    manager.poll()
    with pytest.raises(StatusError, match=r"NOT_FOUND: Servable not found for request: Specific\(m, 1\)"):
        models.find(good_request(label="stable"))
