"""A table that grows: what metrics remember of each detection, in as few bytes as its columns have."""

import numpy as np


class Rows:
    """Rows of named columns, appended some at a time.

    A list of tuples takes some two hundred bytes a detection; a data set has millions of them.
    """

    def __init__(self, **columns: str):
        """Name the columns, each with its numpy type."""
        self._type = np.dtype(list(columns.items()))
        self._bytes = bytearray()

    def append(self, count: int, **values: np.ndarray | float) -> None:
        """Add `count` rows: each column's values, or one for all."""
        rows = np.empty(count, self._type)
        for name in rows.dtype.names or ():
            rows[name] = values[name]
        self._bytes += rows.tobytes()

    def table(self) -> np.ndarray:
        """Give all rows so far, structured, without copying; nothing can be appended while it is held."""
        return np.frombuffer(self._bytes, self._type)


def by_label(rows: np.ndarray, count: int) -> list[np.ndarray]:
    """Part rows by their column "label", 0 to count - 1; in each part they keep their order."""
    order = np.argsort(rows["label"], kind="stable")
    ends = np.searchsorted(rows["label"][order], np.arange(1, count))
    return [rows[part] for part in np.split(order, ends)]
