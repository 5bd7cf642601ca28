"""The check for GPUs in its reduced form, on the CPU: that it trains, scans, exports and serves."""

import json

import pytest
from click.testing import CliRunner

from overfeat_tf.cli.main import overfeat


@pytest.mark.long
def test_the_reduced_form_runs(tmp_path):
    asked = ["benchmark", "gpu", "--repetitions", "1", "--json", str(tmp_path / "gpu.json")]
    done = CliRunner().invoke(overfeat, asked)
    assert done.exit_code == 0, done.output
    ratios = json.loads((tmp_path / "gpu.json").read_text())["gpu"]["ratios"]
    for kind in ("tf32", "bfloat16"):
        assert ratios[f"train_of_product_{kind}"] > 0 and ratios[f"scan_of_product_{kind}"] > 0
        assert ratios[f"together_over_alone_{kind}"] > 0
        assert ratios[f"together_difference_{kind}"] < {"tf32": 1e-4, "bfloat16": 1e-3}[kind]
    assert ratios["served_of_called"] > 0 and ratios["exported_of_product_bfloat16"] > 0
    assert ratios["seconds"] < 480
