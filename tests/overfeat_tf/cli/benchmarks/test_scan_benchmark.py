"""The scan benchmark: what it counts, and that it runs (on a small network)."""

import json

import pytest

from overfeat_tf.cli.benchmarks import scan
from overfeat_tf.cli.benchmarks.harness import Report, run_module
from overfeat_tf.models.loading import load, load_run
from overfeat_tf.network.presets import PRESETS
from overfeat_tf.options import ARITHMETICS

ACCURATE = PRESETS["accurate"]


def test_the_papers_arithmetic():
    # Section 7 of the facts: one flip of Table 5's six scales takes about 119 + 199 GMAC.
    features = sum(ACCURATE.backbone.multiply_adds(*size) for size in ACCURATE.scales)
    assert features == pytest.approx(119.95e9, rel=1e-3)
    classifier = sum(layer.multiply_adds for layer in ACCURATE.head("classifier", 1000))
    assert 1575 * classifier == pytest.approx(198.0e9, rel=1e-3)


def test_an_images_own_scales_are_counted():
    # An image of the largest scale's aspect has that scale as it is, and the smallest one wider than Table 5's.
    work, windows = scan.scan_work_of_image(ACCURATE, 461, 569)
    assert (windows, work) == (1584, 320_287_775_616)


def test_a_report_has_medians_ranges_and_machine():
    report = Report("scan", {"cores": 2})
    report.add("over_crops", [30.0, 20.0, 25.0], "crops", (">=", 25.0))
    found = json.loads(json.dumps(report.as_dict()))["scan"]
    assert found["ratios"] == {"over_crops": 25.0} and found["spread"] == {"over_crops": [20.0, 30.0]}
    assert found["repetitions"] == {"over_crops": 3} and found["machine"] == {"cores": 2}
    assert "| over_crops | 25.000 | 20.000 to 30.000 | 3 | >= 25.0 | crops |" in report.table()


def test_a_process_that_fails_is_reported_in_one_line(capfd):
    with pytest.raises(
        RuntimeError, match=r"^expected `json.tool` to end well; it ended with \d+: see its output above$"
    ):
        run_module("json.tool", "nowhere.json")
    assert "nowhere.json" in capfd.readouterr().err


@pytest.mark.parametrize("chosen", ARITHMETICS)
def test_the_arithmetic_of_this_machine_has_its_rate(chosen):
    rates = {f"{name}_of_matmul_rate": [rate] for rate, name in enumerate((*ARITHMETICS, "python", "exported"), 1)}
    others = ("winograd_error", "bfloat16_error", "over_crops", "area_growth", "area_growth_of_work")
    report = Report("scan", {})
    scan._add_speed(report, "tiny", chosen, rates | {name: [0.5] for name in others})
    assert report.samples["of_matmul_rate"] == rates[f"{chosen}_of_matmul_rate"]
    assert chosen in report.remarks["of_matmul_rate"]
    assert report.samples.keys() == {"of_matmul_rate", *rates, *others}


@pytest.mark.long
def test_a_small_network_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "NATIVE", (100, 140))
    monkeypatch.setattr("overfeat_tf.compute.execution.MIN_SAVING", -1e12)  # have every layer transformed
    monkeypatch.setattr("overfeat_tf.compute.execution.MIN_SPEEDUP", 0.0)
    preset = PRESETS["tiny"]
    run, *versions = scan._write_classifiers("tiny", tmp_path)
    models = [load(version) for version in versions]
    assert [(m.config()["options"]["flips"], m.config()["options"]["arithmetic"]) for m in models] == [
        (False, "direct"),
        (True, "direct"),
        (True, "winograd"),
        (True, "bfloat16"),
    ]
    (ratios,) = scan._speed(load_run(run), models, 1)
    assert set(ratios) >= {
        "bfloat16_of_matmul_rate",
        "winograd_of_matmul_rate",
        "python_of_matmul_rate",
        "exported_of_matmul_rate",
        "over_crops",
    }
    assert (
        all(value > 0 for value in ratios.values())
        and ratios["winograd_error"] < 1e-4 < ratios["bfloat16_error"] < 0.02
    )
    memory, loading = run_module(scan.MODULE, run, *preset.scales[-1])
    assert 0.3 < memory < 3 and loading > 0
    boxes = scan._write_detectors("tiny", tmp_path)
    assert [load(version).config()["options"]["arithmetic"] for version in boxes] == [*ARITHMETICS]
    assert run_module(scan.MODULE, boxes[1], *preset.scales[-1])[0] > 0.3
    table = scan.layer_table(load_run(run).network)
    assert all(f"| {name} |" in table for name in ("conv2", "conv4", "full5"))
