"""Run lengths of a mask along its rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def run_lengths(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the lengths of the runs of a mask in row order.

    Args:
        mask: bool (H, W), not empty.

    Returns:
        int64 (n,): background, foreground, background, ...; the first is 0 where the mask starts with foreground. The
        sum is H * W.
    """
    flat = mask.ravel()
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    first = [0, 0] if flat[0] else [0]
    return np.diff(np.concatenate([first, starts, [flat.size]]))
