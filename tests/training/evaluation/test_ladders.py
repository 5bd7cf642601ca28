"""The rows of the paper's tables: the options that they stand for, and a run scored by each."""

from dataclasses import replace

import numpy as np
import pytest
from small_source import SmallSource, few_digits

from overfeat_tf.models.model import Model
from overfeat_tf.network.convnet import build
from overfeat_tf.network.presets import get_preset
from overfeat_tf.options import InferenceOptions
from training.evaluation import ladders
from training.evaluation.ladders import TABLES, FixedBox, as_markdown, median_box, rows, score_rows
from training.sources.record import Record


@pytest.mark.parametrize("table", TABLES)
def test_rows_are_options_of_scales_that_there_are(table):
    assert len({row.name for row in rows(table, 6)}) == len(rows(table, 6)) == 7
    for row in rows(table, 3):
        scales = InferenceOptions(**row.changes).scales
        assert scales is None or max(scales) <= 3
    dense = [row.changes for row in rows(table, 6) if row.changes["views"] == "dense"]
    assert all(changes["scale_fit"] == "exact" for changes in dense)
    assert all(row.changes["localize_by"] == "accumulated" for row in rows("fig9", 6))
    assert [row.name for row in rows("fig9", 2)] == ["centre crop", "1 scale", "2 scales"]
    assert "4 scales, fine stride" not in [row.name for row in rows("table2", 5)]


def test_a_run_is_scored_by_each_row_of_table_2():
    preset = replace(get_preset("tiny"), scales=((36, 36), (52, 52), (68, 68)))
    model = Model(build(preset, 10), tuple("0123456789"), tasks=("classification",))
    found = list(score_rows(model, few_digits(2, 3), "val", "table2"))
    assert [row["row"] for row in found] == [row.name for row in rows("table2", 3)]
    assert all(0 <= row["top1_error"] <= 1 and "localization1_error" not in row for row in found)
    table = as_markdown("table2", found)
    assert "| ten views " in table and "35.60 / 14.71" in table and len(table.splitlines()) == 2 + len(found)


def test_a_run_is_scored_by_each_row_of_fig_9_beside_a_fixed_box():
    model = Model(
        build(replace(get_preset("tiny"), scales=((36, 36), (52, 52))), 10, per_class=True),
        tuple("0123456789"),
        tasks=("localization",),
    )
    found = list(score_rows(model, few_digits(2, 2), "val", "fig9"))
    named = [name for row in rows("fig9", 2) for name in (f"{row.name}, PCR", f"{row.name}, a fixed box")]
    assert [row["row"] for row in found] == ["a fixed box, right class", *named]
    assert [row["scales"] for row in found] == [0, *(n for n in range(3) for _ in range(2))]
    assert all(0 <= row["localization1_error"] <= 1 and "top1_error" not in row for row in found)
    (only,) = score_rows(model, few_digits(2, 2), "val", "fig9:centre-crop")
    assert only == found[1]
    # The paper's figures by scales are those of one regressor for all classes.
    table = as_markdown("fig9", found)
    assert {row.name: row.paper for row in rows("fig9", 4)} == {
        "centre crop": "about 40",
        "1 scale": "",
        "2 scales": "31.5",
        "3 scales": "",
        "4 scales": "30.0",
    }
    assert "| 2 scales, PCR " in table and "31.5" not in table and "44.1" in table.splitlines()[-1]


BOXES = [[0.1, 0.1, 0.6, 0.6], [0.12, 0.1, 0.6, 0.62], [0.7, 0.7, 0.9, 0.9]]
RECORDS = [Record.of_objects(b"", str(i), [box], [i]) for i, box in enumerate(BOXES)]


def test_a_fixed_box_is_right_where_boxes_are_alike_and_classes_are_guessed():
    box = median_box(SmallSource({"train": RECORDS[:2]}), quiet=True)
    np.testing.assert_allclose(box, [0.11, 0.1, 0.6, 0.61], rtol=1e-6)
    right, guessed = FixedBox(box), FixedBox(box)
    for record in RECORDS:
        right.process_right(record)
        # The second class and then the first, wherever the regressor had put them; and padding.
        guesses = {"num_detections": np.array(2), "detection_classes": np.array([2.0, 1.0, 0.0])}
        guessed.process(record, {**guesses, "detection_boxes": np.zeros((3, 4))})
    assert right.errors() == pytest.approx({"localization1_error": 1 / 3, "localization5_error": 1 / 3})
    assert guessed.errors() == pytest.approx({"localization1_error": 2 / 3, "localization5_error": 1 / 3})


def test_a_training_split_is_read_until_there_are_boxes_enough(monkeypatch):
    monkeypatch.setattr(ladders, "ENOUGH", 2)
    read = []

    class Watched(SmallSource):
        def records(self, split, limit=None):
            for record in super().records(split, limit):
                read.append(record.image_id)
                yield record

    assert median_box(Watched({"train": RECORDS}), quiet=True) is not None and read == ["0", "1"]


def test_without_boxes_to_train_on_fig_9_is_scored_without_a_fixed_box(caplog, monkeypatch):
    monkeypatch.setattr(ladders, "rows", lambda *_: rows("fig9", 7)[:1])
    model = Model(build("tiny", 10), tuple("0123456789"), tasks=("localization",))
    val = few_digits(0, 1).records_of["val"]
    found = list(score_rows(model, SmallSource({"train": [Record.of_class(b"", "", 0)], "val": val}), "val", "fig9"))
    assert [row["row"] for row in found] == ["centre crop, SCR"]
    assert "no row of a fixed box: small has no boxes in a split 'train' to take it from" in caplog.messages
