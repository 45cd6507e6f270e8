"""The best IoU of predicted with true boxes at each of 256 thresholds, by the inclusive rule of the WSOL benchmark."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsol.ops.jit import kernel

Boxes = NDArray[np.int32]
Truth = NDArray[np.float64]


@kernel
def inclusive_iou(x0: float, y0: float, x1: float, y1: float, truth: Truth) -> float:
    """Return the best IoU of one box with several; ends are the last pixel inside, as `+ 1` in every length.

    Args:
        x0: Left.
        y0: Top.
        x1: Last column.
        y1: Last row.
        truth: float64 (G, 4).
    """
    best = 0.0
    area = (x1 - x0 + 1) * (y1 - y0 + 1)
    for g in range(len(truth)):
        width = max(0.0, min(x1, truth[g, 2]) - max(x0, truth[g, 0]) + 1)
        height = max(0.0, min(y1, truth[g, 3]) - max(y0, truth[g, 1]) + 1)
        inter = width * height
        other = (truth[g, 2] - truth[g, 0] + 1) * (truth[g, 3] - truth[g, 1] + 1)
        best = max(best, inter / (area + other - inter))
    return best


@kernel
def best_iou_of_all(boxes: Boxes, spans: Boxes, truth: Truth, empty: Truth, height: int, width: int, clip: bool) -> Any:
    """Return the best IoU over all contours at every threshold.

    Args:
        boxes: int32 (n, 4) half-open xyxy; their ends are taken as the last pixel inside, one pixel too far.
        spans: int32 (n, 2), first and last threshold of each box.
        truth: float64 (G, 4), ends are the last pixel inside.
        empty: float64 (4,), the box that stands for "no contour".
        height: Height of the map.
        width: Width of the map.
        clip: Whether to clip ends to the last pixel of the map.

    Returns:
        float64 (256,).
    """
    out = np.full(256, -1.0)
    right, bottom = (width - 1, height - 1) if clip else (width, height)
    for at in range(len(boxes)):
        x0, y0, x1, y1 = boxes[at]
        iou = inclusive_iou(x0, y0, min(x1, right), min(y1, bottom), truth)
        for threshold in range(spans[at, 0], spans[at, 1] + 1):
            out[threshold] = max(out[threshold], iou)
    blank = inclusive_iou(empty[0], empty[1], empty[2], empty[3], truth)
    for threshold in range(256):
        if out[threshold] < 0:
            out[threshold] = blank
    return out


@kernel
def best_iou_of_largest(boxes: Boxes, truth: Truth, empty: Truth, height: int, width: int, clip: bool) -> Any:
    """Return the best IoU of one box at every threshold.

    Args:
        boxes: int32 (256, 4) half-open xyxy, zeros where there is none.
        truth: See `best_iou_of_all`, as for the other arguments.
        empty: float64 (4,).
        height: Height of the map.
        width: Width of the map.
        clip: Whether to clip ends.

    Returns:
        float64 (256,).
    """
    out = np.empty(256)
    right, bottom = (width - 1, height - 1) if clip else (width, height)
    for threshold in range(256):
        x0, y0, x1, y1 = boxes[threshold]
        if x1 == 0:
            out[threshold] = inclusive_iou(empty[0], empty[1], empty[2], empty[3], truth)
        else:
            out[threshold] = inclusive_iou(x0, y0, min(x1, right), min(y1, bottom), truth)
    return out
