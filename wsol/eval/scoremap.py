"""From stored scores to the map that is evaluated, and from annotated boxes to the same pixels.

The rules of the WSOL benchmark (Choe et al., https://github.com/clovaai/wsolevaluation, inference.py and
data_loaders.py) and their variants in the papers' own code.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wsol.errors import EvalError
from wsol.eval.protocols import View
from wsol.ops.boxes import to_inclusive
from wsol.ops.normalize import minmax
from wsol.ops.truncate import truncate

ScoreMap = NDArray[np.float64]
_CV2 = {"bicubic": cv2.INTER_CUBIC, "bilinear": cv2.INTER_LINEAR}


def to_scoremap(values: NDArray[Any], size: int, *, view: View) -> ScoreMap:
    """Resize the scores of one class to the evaluation size and normalise them.

    Args:
        values: Float (h, w), any range.
        size: Side of the square that is evaluated, in pixels.
        view: Says which interpolation, and whether min-max comes after or before it.

    Returns:
        float64 (size, size) in [0, 1]; zeros where the scores are constant.
    """
    scores: Any = np.ascontiguousarray(values, dtype=np.float64)
    if view.order == "before":
        scores = minmax(scores)
    scores = cv2.resize(scores, (size, size), interpolation=_CV2[view.interpolation])
    # The weights of OpenCV are float32: where they add up to more than 1, a map of one row or column passes 1.
    return np.asarray(np.minimum(scores, 1) if view.order == "before" else minmax(scores), dtype=np.float64)


def check_scoremap(scoremap: object, *, where: object) -> ScoreMap:
    """Refuse what is no score map of the benchmark.

    Args:
        scoremap: float64 (H, W) in [0, 1] without NaN.
        where: Image id, for the message.

    Raises:
        EvalError: Naming the image.
    """
    if not isinstance(scoremap, np.ndarray):
        raise EvalError(f"expected an array, got {type(scoremap).__name__}", where=where)
    if scoremap.dtype != np.float64:
        raise EvalError(f"expected a float64 score map, got {scoremap.dtype}", where=where)
    if scoremap.ndim != 2 or not scoremap.size:
        raise EvalError(f"expected a score map of shape (H, W), got {scoremap.shape}", where=where)
    low, high = float(scoremap.min()), float(scoremap.max())
    if np.isnan(low) or np.isnan(high):
        raise EvalError("the score map holds NaN", where=where)
    if low < 0 or high > 1:
        raise EvalError(f"expected scores in [0, 1], got [{low:.4g}, {high:.4g}]", where=where)
    return scoremap


def quantise(scoremap: ScoreMap) -> NDArray[np.uint8]:
    """Turn scores in [0, 1] into levels 0 to 255 by truncation in float64, the benchmark's rule.

    Args:
        scoremap: float64 (H, W) in [0, 1]; anything else must be refused before, see `check_scoremap`.
    """
    return np.asarray(truncate(np.ascontiguousarray(scoremap, dtype=np.float64)))


def threshold_levels(thresholds: NDArray[np.float64], maximum: int) -> NDArray[np.int64]:
    """Return the integer level of each threshold: truncated `threshold * maximum`, in float64.

    Args:
        thresholds: float64 (T,) in [0, 1].
        maximum: Highest level of the map.
    """
    return (thresholds * maximum).astype(np.int64)


def scale_boxes(
    boxes: NDArray[np.float32], *, image_size: tuple[int, int], size: tuple[int, int], view: View, where: object = None
) -> NDArray[np.float64]:
    """Bring ground-truth boxes to the pixels of the score map.

    Args:
        boxes: float32 (N, 4) half-open xyxy in pixels of the image.
        image_size: (H, W) of the image.
        size: (H, W) of the score map.
        view: Says which rule.
        where: Image id, for the message.

    Returns:
        float64 (N, 4); the end is the last pixel inside.

    Raises:
        EvalError: When there is no box, or one is inside out or has negative coordinates.
    """
    inclusive = to_inclusive(boxes).astype(np.float64)
    if not len(inclusive):
        raise EvalError("no ground-truth box", where=where, hint="choose a split with boxes")
    if (inclusive < 0).any() or (inclusive[:, 2:] < inclusive[:, :2]).any():
        raise EvalError(f"a ground-truth box is inside out or negative: {inclusive.tolist()}", where=where)
    old = np.array([image_size[1], image_size[0]] * 2, dtype=np.float64)
    new = np.array([size[1], size[0]] * 2, dtype=np.float64)
    if view.truth == "benchmark":
        return np.asarray(np.trunc(inclusive * new / old))
    half_open = np.asarray(boxes, dtype=np.float64)
    if view.truth == "float":
        return np.asarray(half_open / old * new)
    scaled = half_open / old * new
    return np.asarray(
        np.trunc(np.concatenate([np.maximum(scaled[:, :2], 0), np.minimum(scaled[:, 2:], new[2:] - 1)], axis=1))
    )
