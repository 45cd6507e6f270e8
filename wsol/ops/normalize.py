"""Bring score maps into [0, 1]."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_Float = NDArray[np.floating[Any]]


def minmax(values: _Float) -> _Float:
    """Shift and scale each map to [0, 1]; a constant or non-finite map becomes zero.

    Args:
        values: Float (..., h, w).

    Returns:
        Same shape and dtype. Subtract first, then divide, as the WSOL benchmark does.
    """
    low = values.min(axis=(-2, -1), keepdims=True)
    out = values - low
    return _divide(out, out.max(axis=(-2, -1), keepdims=True))


def relu_max(values: _Float) -> _Float:
    """Drop negative evidence and divide each map by its maximum; a map without positive values becomes zero.

    Args:
        values: Float (..., h, w).

    Returns:
        Same shape and dtype: the rule of the segmentation papers (PSA, IRN).
    """
    out = np.maximum(values, 0)
    return _divide(out, out.max(axis=(-2, -1), keepdims=True))


def normalize(values: _Float, how: Literal["relu", "minmax"]) -> _Float:
    """Bring maps to [0, 1] by `minmax` or `relu_max`.

    Args:
        values: Float (..., h, w).
        how: "minmax" or "relu".
    """
    return minmax(values) if how == "minmax" else relu_max(values)


def _divide(values: _Float, peak: _Float) -> _Float:
    usable = np.isfinite(peak) & (peak > 0)
    # Written so that NaN maps end as zeros instead of spreading.
    scaled = np.where(usable, values / np.where(usable, peak, 1), 0)
    return scaled.astype(values.dtype, copy=False)
