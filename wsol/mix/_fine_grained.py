"""Fine-grained static saliency: how much a pixel differs from its surroundings at several scales.

Montabone and Soto, "Human detection using a mobile platform and novel features derived from a visual saliency
mechanism", Image and Vision Computing 2010, https://doi.org/10.1016/j.imavis.2009.06.006, with the neighborhoods and
the integer arithmetic of OpenCV's contributed module, which the ordinary OpenCV package lacks.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_REACHES = (12, 24, 48, 28, 56, 112)


def fine_grained_saliency(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the saliency of an RGB image (H, W, 3) or grey image (H, W): (H, W), at least 0, in no unit."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image
    for _ in range(2):
        grey = cv2.GaussianBlur(grey, (3, 3), 0)
    values = np.asarray(grey, dtype=np.float64)
    return centre_surround(values, np.asarray(cv2.integral(values), dtype=np.float64))


def centre_surround(values: NDArray[np.float64], sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the on-center and off-center contrasts, each scaled to 255 and added, scaled to 255 again.

    Args:
        values: (H, W), the pixels in [0, 255].
        sums: (H + 1, W + 1), integral image of the surroundings.
    """
    on, off = np.zeros_like(values), np.zeros_like(values)
    for reach in _REACHES:
        top, bottom = _window(values.shape[0], reach)
        left, right = _window(values.shape[1], reach)
        total = sums[np.ix_(bottom, right)] + sums[np.ix_(top, left)]
        total -= sums[np.ix_(bottom, left)] + sums[np.ix_(top, right)]
        others = np.maximum(np.outer(bottom - top, right - left) - 1, 1)
        contrast = np.trunc(values - (total - values) / others)
        on += np.maximum(contrast, 0)
        off += np.maximum(-contrast, 0)
    on, off = (np.trunc(255 * part / (part.max() or 1.0)) for part in (on, off))
    return np.trunc(255 * (on + off) / (max(on.max(), off.max()) or 1.0))


def _window(length: int, reach: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    at = np.arange(length)
    return np.clip(at - reach + 1, 0, length), np.clip(at + reach + 1, 0, length)
