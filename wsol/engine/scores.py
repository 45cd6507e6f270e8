"""Classification scores for the training history: top-k accuracy and mean average precision."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[Any]


def topk_accuracy(scores: _Array, labels: _Array, *, k: int = 1) -> float:
    """Return the share of images whose label is among the k highest scores, in percent.

    Args:
        scores: Float (N, C); a label whose score is NaN is not found.
        labels: Integer (N,).
        k: At most C; among equal scores the lower class id comes first.
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = (best == labels[:, None]).any(axis=1) & ~np.isnan(scores[np.arange(len(labels)), labels])
    return 100.0 * float(found.mean())


def average_precision(scores: _Array, positive: _Array) -> float:
    """Return the average precision of one class as PASCAL VOC defines it since 2010, in [0, 1].

    The area under the precision-recall curve, made monotonic from the right: at each recall the highest precision
    at that recall or beyond (VOC2012 development kit, VOCap). Equal scores count as one threshold.

    Args:
        scores: Float (N,); NaN counts as lower than any number.
        positive: Bool (N,); NaN is returned where none is true.
    """
    if not positive.any():
        return float("nan")
    scores = np.where(np.isnan(scores), -np.inf, scores)
    order = np.argsort(-scores, kind="stable")
    hits, ranked = np.cumsum(positive[order]), scores[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(order) - 1)  # the end of each run of equal scores
    recall, precision = hits[last] / hits[-1], hits[last] / (last + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def mean_average_precision(scores: _Array, targets: _Array) -> float:
    """Return the mean average precision over the classes that occur, in percent; NaN when none does.

    Args:
        scores: Float (N, C).
        targets: (N, C), positive where above 0.5.
    """
    each = np.array([average_precision(column, truth) for column, truth in zip(scores.T, targets.T > 0.5, strict=True)])
    present = each[~np.isnan(each)]
    return 100.0 * float(present.mean()) if present.size else float("nan")
