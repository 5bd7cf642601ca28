"""The table that grows."""

import numpy as np

from training.rows import Rows, by_label


def test_rows_are_kept_in_order_and_parted_by_label_in_order():
    rows = Rows(label="i4", score="f8", box="4f8")
    rows.append(0, label=np.zeros(0), score=np.zeros(0), box=np.zeros((0, 4)))
    rows.append(3, label=np.array([2, 0, 2]), score=np.array([0.9, 0.8, 0.7]), box=np.arange(12.0).reshape(3, 4))
    rows.append(2, label=0, score=np.array([0.6, 0.5]), box=np.ones((2, 4)))
    table = rows.table()
    assert table["label"].tolist() == [2, 0, 2, 0, 0] and table["box"][2].tolist() == [8, 9, 10, 11]
    assert [part["score"].tolist() for part in by_label(table, 4)] == [[0.8, 0.6, 0.5], [], [0.9, 0.7], []]
    assert [len(part) for part in by_label(Rows(label="i4").table(), 2)] == [0, 0]
    assert table.dtype.itemsize == 44
