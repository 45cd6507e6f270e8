"""Boxes: half-open xyxy inside the package, and the inclusive rule of the WSOL benchmark at its border."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsol.ops.labelling import label_components

_Boxes = NDArray[np.float32]


def from_inclusive(boxes: NDArray[np.floating]) -> _Boxes:
    """Turn boxes whose end is the last pixel inside into half-open ones: (N, 4) xyxy to (N, 4) xyxy."""
    return (np.asarray(boxes, dtype=np.float32).reshape(-1, 4) + np.array([0, 0, 1, 1], np.float32)).astype(np.float32)


def to_inclusive(boxes: _Boxes) -> _Boxes:
    """Undo `from_inclusive`: (N, 4) half-open xyxy to (N, 4) with the last pixel inside."""
    return (np.asarray(boxes, dtype=np.float32).reshape(-1, 4) - np.array([0, 0, 1, 1], np.float32)).astype(np.float32)


def from_xywh(boxes: NDArray[np.floating]) -> _Boxes:
    """Turn (N, 4) x, y, width, height into half-open xyxy."""
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def iou(first: _Boxes, second: _Boxes) -> NDArray[np.float64]:
    """Return the intersection over union of every pair of half-open boxes.

    Args:
        first: (N, 4) xyxy.
        second: (M, 4) xyxy.

    Returns:
        float64 (N, M) in [0, 1]; 0 where both boxes are empty.
    """
    a, b = np.asarray(first, np.float64).reshape(-1, 1, 4), np.asarray(second, np.float64).reshape(1, -1, 4)
    inter = np.prod(np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None), axis=-1)
    area_a, area_b = (np.prod(np.clip(box[..., 2:] - box[..., :2], 0, None), axis=-1) for box in (a, b))
    union = area_a + area_b - inter
    return np.asarray(np.divide(inter, union, out=np.zeros_like(inter), where=union > 0))


def largest_component_box(mask: NDArray[np.bool_]) -> _Boxes:
    """Return the tight box of the largest 8-connected component.

    Args:
        mask: bool (H, W).

    Returns:
        float32 (1, 4) half-open xyxy, or (0, 4) for an empty mask; ties go to the first in raster order.
    """
    stats = label_components(mask)[1]
    if not len(stats):
        return np.zeros((0, 4), np.float32)
    x, y, width, height, _ = stats[int(np.argmax(stats[:, 4]))]
    return np.array([[x, y, x + width, y + height]], dtype=np.float32)
