"""Scores in [0, 1] to 256 levels, without the copy that NumPy makes of the product."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsol.ops.jit import kernel


@kernel
def truncate(scores: NDArray[np.float64]) -> Any:
    """Return `(scores * 255).astype(uint8)`.

    Args:
        scores: float64 (H, W) in [0, 1], without NaN.

    Returns:
        uint8 (H, W).
    """
    out = np.empty(scores.shape, np.uint8)
    source, target = scores.reshape(-1), out.reshape(-1)
    for at in range(len(source)):
        target[at] = np.uint8(source[at] * 255)
    return out
