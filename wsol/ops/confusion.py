"""The confusion matrix of a data set, counted pixel by pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsol.errors import EvalError

_Labels = NDArray[np.integer[Any]]


def confusion_matrix(truth: _Labels, predicted: _Labels, num_classes: int, *, ignore: int = 255) -> NDArray[np.int64]:
    """Count the pixels of one image by true and predicted class.

    Args:
        truth: Integer (H, W) labels; `ignore` and anything outside [0, num_classes) is not counted.
        predicted: Integer (H, W) labels; `ignore` counts as background (0), as no pixel may be skipped.
        num_classes: Classes including background.
        ignore: The label that marks ignored pixels.

    Returns:
        int64 (num_classes, num_classes): rows are true classes, columns predicted ones.

    Raises:
        EvalError: When the shapes differ or a prediction names a class that does not exist.
    """
    if truth.shape != predicted.shape:
        raise EvalError(f"the mask is {predicted.shape} but the ground truth is {truth.shape}")
    valid = (truth >= 0) & (truth < num_classes) & (truth != ignore)
    true, guess = truth[valid].astype(np.int64), predicted[valid].astype(np.int64)
    guess[guess == ignore] = 0
    if guess.size and not (guess.min() >= 0 and guess.max() < num_classes):
        wrong = min(guess.min(), 0) or guess.max()
        raise EvalError(f"the mask holds label {wrong} but there are {num_classes} classes with background")
    counts = np.bincount(true * num_classes + guess, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes)


def iou_per_class(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return TP / (TP + FP + FN) of each class.

    Args:
        matrix: int64 (C, C) from `confusion_matrix`, summed over a data set.

    Returns:
        float64 (C,) in [0, 1]; NaN for a class without true pixels.
    """
    hits, true = np.diag(matrix).astype(np.float64), matrix.sum(axis=1)
    union = true + matrix.sum(axis=0) - hits
    return np.where(true > 0, hits / np.maximum(union, 1), np.nan)


def mean_iou(matrix: NDArray[np.int64]) -> float:
    """Return the mean over the classes that have true pixels, in [0, 1]; NaN when there is none."""
    scores = iou_per_class(matrix)
    present = scores[~np.isnan(scores)]
    return float(present.mean()) if present.size else float("nan")
