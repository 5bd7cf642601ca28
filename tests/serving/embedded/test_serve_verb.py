"""`overfeat serve`: what it says, serves and refuses, and how it ends."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from stock_requests import call, good_request, predict_request
from tensorflow_serving.apis import prediction_service_pb2_grpc

from overfeat_tf.cli.main import main
from serving.embedded.config import ServedModel, VersionPolicy, from_file

REPOSITORY = Path(__file__).parents[3]
CONFIG = """
model_config_list {{
  config {{
    name: 'm'
    base_path: '{base}'
    model_platform: 'tensorflow'
    model_version_policy {{ specific {{ versions: 1 versions: 2 }} }}
    version_labels {{ key: 'stable' value: 1 }}
  }}
}}
"""


def test_it_serves_a_configuration_says_so_and_finishes_what_it_has_on_sigterm(model_dir, tmp_path):
    (tmp_path / "models.config").write_text(CONFIG.format(base=model_dir))
    options = ["--config", tmp_path / "models.config", "--port", "0", "--poll", "0.2"]
    command = [sys.executable, "-m", "overfeat_tf.cli", "serve", *options]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    try:
        told = []
        for line in process.stderr:
            told.append(line.strip())
            if " serving " in line:
                break
        address = told[-1].split()[-1]
        assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO ", line) for line in told), told
        told = [line.split(" INFO ")[1] for line in told]
        assert told[-1] == f"serving m version 1, m version 2 on {address}"
        assert told[1:3] == [f"listening on {address} while models are loaded", "loading m version 2"]
        assert "TF Serving" in told[0] and sum("TF Serving" in line for line in told) == 1
        assert [line.split(":")[0] for line in told if "loaded in" in line] == ["m version 2", "m version 1"]
        assert any("warmed up in" in line and "(2 requests)" in line for line in told)
        with grpc.insecure_channel(address) as channel:
            assert call(channel, "Predict", good_request(label="stable")).model_spec.version.value == 1
            with pytest.raises(grpc.RpcError):
                channel.unary_unary("/tensorflow.serving.PredictionService/Predict")(b"\xff" * 9, timeout=10)
            request = predict_request("spin", seconds=np.array([1.5], np.float32))
            running = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict.future(request, timeout=20)
            time.sleep(0.5)
            assert not running.done()
            process.send_signal(signal.SIGTERM)
            assert running.result().outputs["turns"].int64_val[0] > 0
            told = process.stderr.read().splitlines()
            assert process.wait(30) == 0
        assert len(told) == 2 and "Predict: unreadable message: Error parsing message" in told[0], told
        assert told[1].endswith("INFO stopping; requests have 8 s to finish")
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize("options, warm", [([], True), (["--no-warmup"], False)])
def test_warm_up_requests_are_replayed_unless_refused(model_dir, options, warm, monkeypatch):
    asked = {}
    monkeypatch.setattr("serving.embedded.server.run", lambda *_, **named: asked.update(named))
    monkeypatch.setattr(sys, "argv", ["overfeat", "serve", str(model_dir), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, asked["warm"]) == (0, warm)


def test_a_configuration_gives_names_paths_policies_and_labels(tmp_path):
    (tmp_path / "models.config").write_text(CONFIG.format(base="models/m"))
    policy = VersionPolicy(specific=VersionPolicy.Specific(versions=[1, 2]))
    expected = ServedModel("m", tmp_path / "models" / "m", policy, {"stable": 1})
    assert from_file(tmp_path / "models.config") == [expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected either folders of models (saved_models/NAME) or --config FILE"),
        (["nowhere"], "nowhere/1/saved_model.pb): there is no such directory; check the path"),
        (["m", "--config", "models.config"], "or --config FILE"),
        (["--config", "nowhere"], "expected a ModelServerConfig in nowhere: there is no such file; check the path"),
        (["--config", "models.config"], "models.config is not a ModelServerConfig in text form: 1:1"),
        (["--config", "models.config", "--all-versions"], "expected no --all-versions with --config"),
        (["m", "--host", "0.0.0.0"], "expected TLS and a token on 0.0.0.0, which other machines reach"),
        (["m", "--tls-cert", "models.config"], "expected a certificate and its key together"),
    ],
)
def test_mistakes_are_one_line_and_status_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("models.config").write_text("no_such_field: 1")
    monkeypatch.setattr(sys, "argv", ["overfeat", "serve", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err.splitlines()[-1]
    assert (ended.value.code, message in told) == (2, True), told
