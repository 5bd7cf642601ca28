"""HandleReloadConfigRequest: another configuration, whole, while requests go on."""

import logging
import threading
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from stock_requests import call, good_request
from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc
from version_life import POLL, Load, State, put, served, states
from waiting import until

from serving.embedded.config import from_file
from serving.embedded.server import start_models
from serving.embedded.version_manager import VersionManager


@pytest.fixture
def base(model_dir, tmp_path) -> Path:
    """Makes a model's directory with version 1."""
    (tmp_path / "m").mkdir()
    put(model_dir, tmp_path / "m", 1)
    return tmp_path / "m"


def _reload(channel: grpc.Channel, *models: dict):
    listed = [{"model_platform": "tensorflow", **model} for model in models]
    config = {"model_config_list": {"config": listed}}
    return call(channel, "HandleReloadConfigRequest", model_management_pb2.ReloadConfigRequest(config=config))


def test_reload_replaces_the_whole_configuration(model_dir, base, tmp_path):
    put(model_dir, base, 2, source=2)
    everything = {"name": "m", "base_path": str(base), "model_version_policy": {"all": {}}}
    with served(base) as (server, channel):
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
        # A new model that is not there changes nothing, and after an empty list labels are new.
        _reload(channel, {**everything, "version_labels": {"stable": 1}})
        with pytest.raises(grpc.RpcError) as missing:
            _reload(channel, {"name": "n", "base_path": str(tmp_path / "nowhere")})
        assert missing.value.code() is grpc.StatusCode.NOT_FOUND and "no such directory" in missing.value.details()
        assert call(channel, "Predict", good_request(label="stable")).model_spec.version.value == 1
        call(channel, "HandleReloadConfigRequest", request)
        assert set(states(channel).values()) <= {State.UNLOADING, State.END}


def test_a_label_in_use_moves_to_loaded_versions_only_and_a_refusal_changes_nothing(model_dir, base, monkeypatch):
    put(model_dir, base, 2, source=2)

    def listing(*versions: int, **labels: int) -> dict:
        policy = {"specific": {"versions": versions}}
        return {"name": "m", "base_path": str(base), "model_version_policy": policy, "version_labels": labels}

    with served(base) as (server, channel):
        _reload(channel, listing(1, 2, stable=1, canary=2))
        put(model_dir, base, 3)
        # TF Serving looks at labels before it loads: listing a version and moving a label to it are two saves.
        for refused in (listing(1, 2, 3, stable=1, canary=3), listing(1, stable=1, canary=2)):
            with pytest.raises(grpc.RpcError, match=r"Request to assign label to version \d of model m"):
                _reload(channel, refused)
            assert server.models.loaded == [("m", 1), ("m", 2)]
            assert call(channel, "Predict", good_request(label="canary")).model_spec.version.value == 2
        _reload(channel, listing(1, 2, 3, stable=1, canary=2))
        withdraw, labelled = server.models.withdraw, []
        noted = lambda name, version: (labelled.append(server.models.labels("m")["canary"]), withdraw(name, version))  # noqa: E731
        monkeypatch.setattr(server.models, "withdraw", noted)
        _reload(channel, listing(1, 3, stable=1, canary=3, new=3))
        assert labelled == [3]  # before version 2 is unloaded: in between the label would name nothing
        assert server.models.loaded == [("m", 1), ("m", 3)]
        assert [server.models.labels("m")[label] for label in ("stable", "canary", "new")] == [1, 3, 3]


def test_reload_says_what_could_not_be_loaded(base, tmp_path):
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "saved_model.pb").write_bytes(b"\xff")
    keep = {"name": "m", "base_path": str(base)}
    with served(base) as (server, channel):
        for _ in range(2):  # the second time nothing is loaded: it has not changed
            with pytest.raises(grpc.RpcError) as failed:
                _reload(channel, keep, {"name": "broken", "base_path": str(tmp_path / "broken")})
            assert failed.value.code() is grpc.StatusCode.UNKNOWN
            assert failed.value.details().startswith("1 servable(s) did not become available: {")
            assert "broken/1/saved_model.pb is not a SavedModel" in failed.value.details()
            assert server.models.loaded == [("m", 1)]
        with pytest.raises(grpc.RpcError, match="there is no such directory"):
            _reload(channel, keep, {"name": "new", "base_path": str(tmp_path / "nowhere")})
        for config, message in [
            ([keep, keep], "Illegal to list model m multiple times in config list"),
            (
                [{"name": "m", "base_path": "models/m"}],
                "Expected model m to have an absolute path or URI; got base_path()=models/m",
            ),
            (
                [keep, {"name": "n", "base_path": "/n", "model_platform": ""}],
                "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
                "ModelServerConfig::model_platform of model n; set the latter to tensorflow",
            ),
        ]:
            with pytest.raises(grpc.RpcError) as refused:
                _reload(channel, *config)
            assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, message)


def test_who_asks_for_the_health_need_not_wait_for_those_who_reload(base, monkeypatch):
    may_end = threading.Event()
    with served(base) as (_, channel):
        monkeypatch.setattr(VersionManager, "reload", lambda *_: may_end.wait(20))
        method = model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest
        reloads = [method.future(model_management_pb2.ReloadConfigRequest(), timeout=30) for _ in range(8)]
        time.sleep(0.3)
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        assert states(channel) == {1: State.AVAILABLE}
        may_end.set()
        assert all(each.result() is not None for each in reloads)


def test_reload_of_the_same_models_from_elsewhere_switches_without_a_gap(model_dir, base, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    put(model_dir, other, 1, source=2)
    with served(base) as (server, channel), Load(server.address, clients=2) as load:
        before = server.models.find(good_request())
        until(lambda: len(load.versions) > 5)
        _reload(channel, {"name": "m", "base_path": str(other)})
        assert server.models.find(good_request()) is not before
    assert load.failures == []


def test_a_configuration_that_is_saved_again_is_read_again_and_a_broken_one_is_a_line(base, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    file = tmp_path / "models.config"
    entry = "config {{ name: '{name}' base_path: 'm' model_platform: 'tensorflow' {more} }}"

    def save(*entries: str) -> None:
        file.write_text(f"model_config_list {{ {' '.join(entries)} }}")

    save(entry.format(name="m", more=""))
    options = {"port": 0, "poll_seconds": POLL, "config": file}
    with start_models(from_file(file), **options) as server, grpc.insecure_channel(server.address) as channel:
        labels = "version_labels { key: 'stable' value: 1 }"
        save(entry.format(name="m", more=labels), entry.format(name="n", more=""))
        until(lambda: server.models.loaded == [("m", 1), ("n", 1)])
        until(lambda: f"{file}: configuration loaded" in caplog.messages)
        assert call(channel, "Predict", good_request(label="stable")).outputs
        for text, why in [("model_config", "is not a ModelServerConfig"), ("", "not supported")]:
            file.write_text(text)
            until(lambda why=why: any(why in line for line in caplog.messages))
        save(entry.format(name="m", more=labels.replace("1", "7")))
        until(lambda: any("Request to assign label to version 7" in line for line in caplog.messages))
        file.unlink()
        time.sleep(3 * POLL)
        assert server.models.loaded == [("m", 1), ("n", 1)]
        save(entry.format(name="m", more=""))
        until(lambda: server.models.loaded == [("m", 1)])
    refused = [line for line in caplog.messages if "configuration refused, nothing changed" in line]
    assert len(refused) == 3 and not any("\n" in line for line in refused)
