"""Otsu's threshold: the one that separates two groups of values best."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def otsu_threshold(values: NDArray[np.floating]) -> float:
    """Return the threshold with the greatest variance between the values below and above.

    Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 1979.

    Args:
        values: Float (h, w) in [0, 1], not empty; rounded to 256 levels.

    Returns:
        A score half-way between two levels; half a level above zero for values that are all the same.
    """
    levels = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    level, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return (float(level) + 0.5) / 255
