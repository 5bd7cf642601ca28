"""Several devices and several processes train as one device does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_run
import tensorflow as tf
import yaml
from small_run import EPOCHS
from workers import start_workers

from overfeat_tf.models.loading import read_config
from overfeat_tf.models.model import TASKS
from training.fit.strategy import check_batch, choose_strategy, has_workers, is_chief, own_rows

DEPLOY = Path(__file__).parents[3] / "training" / "deploy"


def started(folder: Path, devices: int, *settings: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, small_run.__file__, str(folder), str(devices), *settings]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def ended(process: subprocess.Popen) -> dict:
    out, error = process.communicate(timeout=400)
    assert process.returncode == 0, error[-3000:]
    return json.loads(out.splitlines()[-1])


def assert_same(found: dict, wanted: dict, rtol: float = 2e-3) -> None:
    """The losses of the second step say that the gradients of the first were the same."""
    assert set(found) == set(wanted) == set(TASKS)
    for stage in TASKS:
        assert len(found[stage]) == EPOCHS
        for one, other in zip(found[stage], wanted[stage], strict=True):
            assert one.keys() == other.keys()
            for name, value in other.items():
                np.testing.assert_allclose(one[name], value, rtol=rtol, err_msg=f"{stage} {name}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    """The figures of one process on one device."""
    return ended(started(tmp_path_factory.mktemp("runs") / "one", 1))["figures"]


@pytest.mark.long
@pytest.mark.parametrize("settings", [[], [f"{stage}.accumulate=2" for stage in TASKS]])
def test_two_devices_train_as_one(alone, tmp_path, settings):
    two = ended(started(tmp_path / "two", 2, *settings))
    assert two["devices"] == 2
    assert_same(two["figures"], alone)


@pytest.mark.long
def test_two_processes_train_as_one(alone, tmp_path):
    """Of a CPU each: TensorFlow gives a worker one CPU at most, where it may give it several GPUs."""
    workers = start_workers(small_run.__file__, tmp_path / "run", 1)
    try:
        chief, other = (ended(worker) for worker in workers)
    finally:
        for worker in workers:
            worker.kill()
    assert chief["devices"] == other["devices"] == 2
    assert_same(chief["figures"], alone)
    assert other["figures"] == {}  # the chief alone reports, and is_chief
    assert read_config(tmp_path / "run")["model"]["tasks"] == list(TASKS)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


@pytest.mark.long
def test_two_processes_go_on_for_more_steps(tmp_path):
    command, run = ("-m", "overfeat_tf.cli", "train"), tmp_path / "run"
    short = [word for key in ("steps=4", "epochs=1", "batch=4") for word in ("--set", f"classification.{key}")]
    for arguments, steps in (
        (["digits-quick", "--run", run, "--stage", "classification", *short], 4),
        (["--run", run, "--more-steps", 2], 6),
    ):
        for worker in start_workers(*command, *arguments):
            _, error = worker.communicate(timeout=300)
            assert worker.returncode == 0, error[-3000:]
        assert read_config(run)["kept"]["classification"]["last"]["step"] == steps


def test_two_processes_wait_for_each_other_and_tell_each_other():
    lines = (
        "from training.fit.strategy import any_worker, choose_strategy, is_chief",
        "strategy = choose_strategy()",
        "print(any_worker(strategy, is_chief(strategy)), any_worker(strategy, False))",
    )
    for worker in start_workers("-c", "; ".join(lines)):
        out, error = worker.communicate(timeout=120)
        assert out == "True False\n", error


@pytest.mark.parametrize("worker", [0, 1])
def test_each_worker_deals_its_rows_of_every_batch_to_its_devices(worker):
    context = tf.distribute.InputContext(num_input_pipelines=2, input_pipeline_id=worker, num_replicas_in_sync=4)

    def numbers(rows: range) -> tf.data.Dataset:
        made = tf.data.Dataset.range(16).filter(lambda n: (n % 8 >= rows.start) & (n % 8 < rows.stop))
        return made.map(lambda n: (n, {"label": -n})).batch(len(rows), drop_remainder=True)

    dealt = [(n.numpy().tolist(), t["label"].numpy().tolist()) for n, t in own_rows(numbers, 8, context)]
    first = 4 * worker
    expected = [[at, at + 1] for start in (0, 8) for at in (start + first, start + first + 2)]
    assert dealt == [(rows, [-row for row in rows]) for rows in expected]


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"^expected detection\.batch to divide among 1 devices and 3 parts; got 4$"):
        check_batch(tf.distribute.get_strategy(), 4, 3, "detection")


@pytest.mark.parametrize(
    "text, several", [(None, False), ("", False), ("{}", False), ('{"cluster": {"worker": ["a:1"]}}', True)]
)
def test_workers_are_those_of_tf_config(monkeypatch, text, several):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    assert has_workers() is several


@pytest.mark.parametrize("text", ["{", "[1]", '{"cluster": {"worker": "a:1"}}'])
def test_a_tf_config_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(
        ValueError, match=r"^expected TF_CONFIG to be a JSON object with a cluster of lists of addresses"
    ):
        has_workers()


def test_one_device_writes_and_needs_no_strategy():
    assert choose_strategy() is tf.distribute.get_strategy()
    assert is_chief(choose_strategy())


def manifests() -> list[dict]:
    return list(yaml.safe_load_all((DEPLOY / "workers.yaml").read_text()))


def test_the_example_keeps_to_kubernetes_schemas():
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for manifest in manifests():
        kubernetes_validate.validate(manifest, "1.30", strict=True)
    job = manifests()[-1]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**job, "spec": {**job["spec"], "completion": 2}}, "1.30", strict=True)


def test_the_example_for_kubernetes_starts_the_workers_that_it_names():
    service, job = manifests()
    assert job["spec"]["completionMode"] == "Indexed"
    container = job["spec"]["template"]["spec"]["containers"][0]
    script = container["command"][-1]
    count = job["spec"]["completions"]
    assert job["spec"]["parallelism"] == count
    done = subprocess.run(
        ["bash", "-c", script.replace("exec overfeat", "echo $TF_CONFIG; : overfeat")],
        env={**os.environ, "JOB_COMPLETION_INDEX": "1", "WORKERS": str(count)},
        capture_output=True,
        text=True,
        check=True,
    )
    config = json.loads(done.stdout)
    assert config["task"] == {"type": "worker", "index": 1}
    name, domain = job["metadata"]["name"], service["metadata"]["name"]
    assert config["cluster"]["worker"] == [f"{name}-{i}.{domain}:2222" for i in range(count)]
    assert job["spec"]["template"]["spec"]["subdomain"] == domain and service["spec"]["clusterIP"] == "None"
