"""The batch benchmark: that it runs both programs, on a few images."""

import pytest

pytest.importorskip("apache_beam", reason="needs the extra `beam`")

from overfeat_tf.cli.benchmarks import batch as benchmark


@pytest.mark.long
def test_both_programs_and_a_network_are_measured():
    report = benchmark.measure("tiny", ["tiny"], 1, 6, 1)
    assert report.samples.keys() == {"per_core_of_predict", "two_processes", "two_processes_per_core"}
    assert "| `tiny` |" in report.table()
