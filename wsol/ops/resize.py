"""Resize maps and masks by the rules that the evaluation protocols name."""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Interpolation = Literal["nearest", "bilinear", "bicubic"]
_CV2 = {"nearest": cv2.INTER_NEAREST, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


def resize_maps(
    values: NDArray[Any], size: tuple[int, int], *, interpolation: Interpolation = "bilinear"
) -> NDArray[Any]:
    """Resize a stack of maps.

    Args:
        values: float32 or float64 (K, h, w).
        size: Target (H, W) in pixels.
        interpolation: "bilinear" or "bicubic"; float64 bicubic is the same in every OpenCV version.

    Returns:
        (K, H, W), same dtype; bicubic may overshoot the input's range.
    """
    out = np.empty((len(values), *size), dtype=values.dtype)
    for plane, target in zip(values, out, strict=True):
        cv2.resize(np.ascontiguousarray(plane), (size[1], size[0]), dst=target, interpolation=_CV2[interpolation])
    return out


def resize_mask(mask: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize a label mask by nearest neighbour.

    Args:
        mask: uint8 (h, w).
        size: Target (H, W).

    Returns:
        uint8 (H, W). Source column of x is `min(floor(x * (1 / (W / w))), w - 1)` in float64, as cv2 does.
    """
    return np.asarray(cv2.resize(mask, (size[1], size[0]), interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
