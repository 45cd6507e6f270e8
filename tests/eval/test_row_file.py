"""Columns of a file of rows, and the memory that they do not take."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from wsol.eval.row_file import RowFile


@pytest.mark.parametrize("count", [0, 1, 4096, 9001])
def test_a_column_is_that_of_the_table(count):
    table, file = np.random.default_rng(count).random((count, 7), dtype=np.float32), RowFile(7)
    file.append(table[: count // 3])
    file.append(table[count // 3 :])
    for at in (0, 3, 6):
        np.testing.assert_array_equal(file.column(at), table[:, at])


def test_rows_take_no_memory():
    file, row = RowFile(100), np.zeros(100, np.float32)
    tracemalloc.start()
    try:
        file.append(row for _ in range(30_000))  # 12 MB
        file.column(99)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
