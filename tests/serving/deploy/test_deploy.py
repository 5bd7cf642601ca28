"""What is deployed: every text-format file by TF Serving's protos, every YAML by its schema, and that they agree."""

import http.server
import importlib.util
import json
import re
import subprocess
import threading
from pathlib import Path

import jsonschema
import pytest
import yaml
from google.protobuf import text_format
from serving_protos import BatchingParameters, MonitoringConfig
from tensorflow_serving.config import model_server_config_pb2

from serving.export.warmup import ALLOWED_BATCH_SIZES, BATCHING

DEPLOY = Path(__file__).parents[3] / "serving" / "deploy"
MODEL = "mine"


def _parsed(name: str, message):
    return text_format.Parse((DEPLOY / name).read_text(), message)


def _yaml(name: str) -> list[dict]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def _manifest(kind: str) -> dict:
    return next(each for each in _yaml("kubernetes.yaml") if each["kind"] == kind)


def _container() -> dict:
    (container,) = _manifest("Deployment")["spec"]["template"]["spec"]["containers"]
    return container


def _serving() -> dict:
    text = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", (DEPLOY / "docker-compose.yaml").read_text())  # with its defaults
    return yaml.safe_load(text)["services"]["serving"]


def test_models_are_listed_with_the_versions_that_their_labels_name():
    config = _parsed("models.config", model_server_config_pb2.ModelServerConfig())
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == (MODEL, f"/models/{MODEL}", "tensorflow")
    assert set(model.version_labels) == {"stable", "canary"}
    assert set(model.version_labels.values()) == set(model.model_version_policy.specific.versions) == {1}  # step 1


@pytest.mark.parametrize("text", [(DEPLOY / "batching.config").read_text(), BATCHING], ids=["deployed", "exported"])
def test_batching_allows_the_sizes_that_are_warmed_up(text):
    batching = text_format.Parse(text, BatchingParameters())
    assert tuple(batching.allowed_batch_sizes) == ALLOWED_BATCH_SIZES == tuple(sorted(ALLOWED_BATCH_SIZES))
    assert batching.max_batch_size.value == ALLOWED_BATCH_SIZES[-1]  # else the server refuses the file
    assert batching.num_batch_threads.value > 0 and batching.max_enqueued_batches.value > 0


def test_an_unknown_field_is_noticed():
    with pytest.raises(text_format.ParseError):
        text_format.Parse("max_batchsize { value: 8 }", BatchingParameters())


def test_prometheus_scrapes_what_the_server_shows():
    monitoring = _parsed("monitoring.config", MonitoringConfig()).prometheus_config
    assert monitoring.enable
    (job,) = _yaml("prometheus.yml")[0]["scrape_configs"]
    assert job["metrics_path"] == monitoring.path == "/monitoring/prometheus/metrics"
    assert job["static_configs"][0]["targets"] == ["serving:8501"]
    notes = _manifest("Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert (notes["prometheus.io/path"], notes["prometheus.io/port"]) == (monitoring.path, "8501")


def _strict(required: dict, optional: dict | None = None) -> dict:
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


_STRING = {"type": "string", "minLength": 1}
_DURATION = {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"}
# No package carries these two: the part that is used, and nothing beside it.
_PROMETHEUS = _strict(
    {
        "global": _strict({"scrape_interval": _DURATION}, {"scrape_timeout": _DURATION}),
        "scrape_configs": {
            "type": "array",
            "minItems": 1,
            "items": _strict(
                {
                    "job_name": _STRING,
                    "metrics_path": {"type": "string", "pattern": "^/"},
                    "static_configs": {
                        "type": "array",
                        "items": _strict(
                            {"targets": {"type": "array", "items": {"type": "string", "pattern": r"^[^/:]+:\d+$"}}}
                        ),
                    },
                }
            ),
        },
    }
)
_KUSTOMIZATION = _strict(
    {
        "apiVersion": {"const": "kustomize.config.k8s.io/v1beta1"},
        "kind": {"const": "Kustomization"},
        "resources": {"type": "array", "items": _STRING},
        "configMapGenerator": {
            "type": "array",
            "items": _strict({"name": _STRING, "files": {"type": "array", "items": _STRING}}),
        },
        "generatorOptions": _strict({"disableNameSuffixHash": {"type": "boolean"}}),
    }
)


@pytest.mark.parametrize(("name", "schema"), [("prometheus.yml", _PROMETHEUS), ("kustomization.yaml", _KUSTOMIZATION)])
def test_yaml_keeps_to_its_schema(name, schema):
    (document,) = _yaml(name)
    jsonschema.validate(document, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, "scrape_config": []}, schema)


def test_compose_keeps_to_the_compose_specification():
    spec = importlib.util.find_spec("check_jsonschema")  # for its files alone
    if spec is None:
        pytest.skip("check-jsonschema is not installed")
    file = Path(spec.submodule_search_locations[0]) / "builtin_schemas" / "vendor" / "compose-spec.json"
    schema = json.loads(file.read_text())
    (document,) = _yaml("docker-compose.yaml")
    jsonschema.validate(document, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, "services": {"serving": {"imagine": "x"}}}, schema)


@pytest.mark.parametrize("name", ["kubernetes.yaml", "batch.yaml"])
def test_manifests_keep_to_kubernetes_schemas(name):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    manifests = _yaml(name)
    for manifest in manifests:
        kubernetes_validate.validate(manifest, "1.30", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**manifests[-1], "specs": {}}, "1.30", strict=True)


def test_every_file_that_the_server_is_given_is_mounted():
    (kustomization,) = _yaml("kustomization.yaml")
    (generated,) = kustomization["configMapGenerator"]
    mounts = {mount["name"]: mount["mountPath"] for mount in _container()["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in _manifest("Deployment")["spec"]["template"]["spec"]["volumes"]}
    assert volumes["config"]["configMap"]["name"] == generated["name"] and mounts["config"] == "/config"
    claim = _manifest("PersistentVolumeClaim")["metadata"]["name"]
    assert volumes["models"]["persistentVolumeClaim"]["claimName"] == claim and mounts["models"] == "/models"
    assert [volume.split(":")[-2] for volume in _serving()["volumes"]] == ["/models", "/config"]
    text = (DEPLOY / "docker-compose.yaml").read_text() + (DEPLOY / "kubernetes.yaml").read_text()
    named = set(re.findall(r"=/config/(\S+)", text))
    assert named == set(generated["files"]) and all((DEPLOY / name).is_file() for name in named)


def test_both_ways_start_the_server_alike():
    flags = [flag for flag in _container()["args"] if not flag.startswith("--grpc_channel_arguments=")]  # one server
    assert flags == _serving()["command"]
    assert "--grpc_max_threads=128" in flags and _container()["image"].rpartition(":")[2] in _serving()["image"]
    container = _container()
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
    for kind in ("intra", "inter"):
        assert f"--tensorflow_{kind}_op_parallelism={container['resources']['requests']['cpu']}" in flags
        assert f"--tensorflow_{kind}_op_parallelism={_serving()['cpus']}" in flags
    compose = _yaml("docker-compose.yaml")[0]["services"]["serving"]  # the machine may have fewer CPUs than four
    assert compose["cpus"] == "${CPUS:-4}" and sum(compose["cpus"] in flag for flag in compose["command"]) == 2


def test_the_service_reaches_the_pods():
    service, deployment = _manifest("Service")["spec"], _manifest("Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert service["selector"] == labels == deployment["selector"]["matchLabels"]
    assert _manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    ports = {port["name"]: port["containerPort"] for port in _container()["ports"]}
    assert {port["targetPort"]: port["port"] for port in service["ports"]} == ports == {"grpc": 8500, "rest": 8501}
    pod = deployment["template"]["spec"]
    pause = int(_container()["lifecycle"]["preStop"]["exec"]["command"][-1])
    (age,) = re.findall(r"grpc_channel_arguments=grpc.max_connection_age_ms=(\d+)", " ".join(_container()["args"]))
    # gRPC ends a connection up to a tenth later, and clients look for other pods only then.
    assert 1.1 * int(age) / 1000 < pause and pause + 30 <= pod["terminationGracePeriodSeconds"]


def test_the_pods_are_scaled_by_their_load():
    scaler, deployment = _manifest("HorizontalPodAutoscaler")["spec"], _manifest("Deployment")
    assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]  # `kubectl apply` would set it back
    assert "cpu" in _container()["resources"]["requests"]  # what utilisation is measured by
    assert 2 <= scaler["minReplicas"] < scaler["maxReplicas"]


@pytest.mark.parametrize("done", [False, True])
def test_a_batch_job_runs_each_share_once(tmp_path, done):
    (job,) = _yaml("batch.yaml")
    container = job["spec"]["template"]["spec"]["containers"][0]
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    shell, options, script = container["command"]
    assert {"/models", "/lists", "/output"} < mounted
    (tmp_path / "output" / "07").mkdir(parents=True)
    if done:
        (tmp_path / "output" / "07" / "_SUCCESS").touch()
    script = script.replace("/output/", f"{tmp_path}/output/").replace("exec overfeat", "echo overfeat")
    ran = subprocess.run([shell, options, script], env={"JOB_COMPLETION_INDEX": "7"}, capture_output=True, text=True)
    expected = f"overfeat batch /models/mine /lists/07.txt --output {tmp_path}/output/07\n"
    assert (ran.returncode, ran.stdout) == (0, "" if done else expected)


@pytest.mark.parametrize(
    ("states", "ready"),
    [(["AVAILABLE"], True), (["LOADING", "AVAILABLE"], True), (["LOADING"], False), (["END"], False), ([], False)],
)
def test_the_probe_is_right_about_the_models_state(states, ready):
    probe = _container()["readinessProbe"]["exec"]["command"]
    assert _serving()["healthcheck"]["test"] == ["CMD", *probe]
    asked = []

    class Status(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            ok = {"error_code": "OK", "error_message": ""}
            versions = [{"version": str(9 - i), "state": state, "status": ok} for i, state in enumerate(states)]
            error = {"error": f"Could not find any versions of model {MODEL}"}
            body = json.dumps({"model_version_status": versions} if versions else error, indent=1).encode()
            self.send_response(200 if versions else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Status) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        script = probe[-1].replace("8501", str(server.server_port))
        done = subprocess.run([*probe[:-1], script], timeout=20)
        server.shutdown()
    assert asked == [f"/v1/models/{MODEL}"]  # a label would be ignored
    assert (done.returncode == 0) is ready


def test_the_runbook_is_a_page_and_names_the_traps():
    text = (DEPLOY / "RUNBOOK.md").read_text()
    assert len(text.splitlines()) <= 90
    traps = (
        "4 MiB",
        "Cold start",
        "Batching applies to every signature",
        "XLA is off",
        "--grpc_max_threads",
        "New pods",
    )
    for trap in (*traps, "Empty batches", "Version skew"):
        assert trap in text
    for part in ("Start", "Roll out, roll back", "Watch", "Threads and memory"):
        assert f"\n## {part}\n" in text
    for name in re.findall(r"`(\w+\.(?:config|yml|yaml))`", text):
        assert (DEPLOY / name).is_file()
