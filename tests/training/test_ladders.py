"""The rows of the paper's tables: the options that they stand for, and a run scored by each."""

import numpy as np
import pytest
from small_source import SmallSource, few_digits

from overfeat_tf.model import Model
from overfeat_tf.network import build
from overfeat_tf.options import InferenceOptions
from training.ladders import TABLES, as_markdown, climb, fixed_box_errors, rows
from training.sources.record import Record


@pytest.mark.parametrize("table", TABLES)
def test_rows_are_options_of_scales_that_there_are(table):
    assert len({row.name for row in rows(table, 6)}) == len(rows(table, 6)) == 7
    for row in rows(table, 3):
        scales = InferenceOptions(**row.changes).scales
        assert scales is None or max(scales) <= 3
    assert [row.name for row in rows("fig9", 2)] == ["centre crop", "1 scale", "2 scales"]
    assert "4 scales, fine stride" not in [row.name for row in rows("table2", 5)]


def test_a_run_is_scored_by_each_row_of_table_2():
    model = Model(build("tiny", 10), tuple("0123456789"), tasks=("classification",))
    found = list(climb(model, few_digits(2, 3), "val", "table2"))
    assert [row["row"] for row in found] == [row.name for row in rows("table2", 7)]
    assert all(0 <= row["top1_error"] <= 1 and "localization1_error" not in row for row in found)
    table = as_markdown("table2", found)
    assert "| ten views " in table and "35.60 / 14.71" in table and len(table.splitlines()) == 9


def test_a_run_is_scored_by_each_row_of_fig_9_beside_a_fixed_box():
    model = Model(build("tiny", 10, per_class=True), tuple("0123456789"), tasks=("localization",))
    found = list(climb(model, few_digits(2, 2), "val", "fig9"))
    named = [f"{row.name}, PCR" for row in rows("fig9", 7)]
    assert [row["row"] for row in found] == ["a fixed box, right class", *named]
    assert [row["scales"] for row in found] == [0, 0, 1, 2, 3, 4, 5, 6, 7]
    assert all(0 <= row["localization1_error"] <= 1 and "top1_error" not in row for row in found)
    table = as_markdown("fig9", found)
    assert "| 3 scales, PCR " in table and "30.0" in table and "44.1" in table.splitlines()[-1]
    (only,) = climb(model, few_digits(2, 2), "val", "fig9:2-scales")
    assert only == found[3]


def test_a_fixed_box_is_right_where_boxes_are_alike():
    boxes = [[0.1, 0.1, 0.6, 0.6], [0.12, 0.1, 0.6, 0.62], [0.7, 0.7, 0.9, 0.9]]
    records = [Record.of_objects(b"", str(i), [box], [i]) for i, box in enumerate(boxes)]
    source = SmallSource({"train": records[:2], "val": records}, ("a", "b", "c"))
    errors = fixed_box_errors(source, "train", "val")
    np.testing.assert_allclose([errors["localization1_error"], errors["localization5_error"]], 1 / 3)
    with pytest.raises(ValueError, match=r"^expected boxes in split 'none' of small; there are none$"):
        fixed_box_errors(SmallSource({"none": [Record.of_class(b"", "", 0)]}), "none", "none")
