"""Numbers of every image in a temporary file, where only one of them will be looked at."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_BLOCK = 4096  # rows read at once


class RowFile:
    """Rows of one length, of which one column is wanted at the end; they take no memory.

    Args:
        width: Numbers a row.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the object)

    def append(self, rows: Iterable[NDArray[np.float32]]) -> None:
        """Add rows, float32 (width,) each, at the end."""
        for row in rows:
            self._file.write(np.ascontiguousarray(row).data)

    def column(self, at: int) -> NDArray[np.float32]:
        """Return one number of every row, float32 (N,)."""
        self._file.seek(0)
        found = [np.empty(0, np.float32)]
        while block := self._file.read(_BLOCK * self.width * 4):
            found.append(np.frombuffer(block, np.float32).reshape(-1, self.width)[:, at].copy())
        return np.concatenate(found)
