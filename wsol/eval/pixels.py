"""Pixel average precision (PxAP): precision and recall of the pixels of a whole data set over the threshold.

Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020,
https://github.com/clovaai/wsolevaluation. All pixels are pooled, so that large objects weigh more; the average is a
sum of steps, not interpolated. pIoU (Zhu et al., DA-WSOL, CVPR 2022) is the best pooled IoU over the same thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsol.errors import EvalError
from wsol.ops.jit import kernel
from wsol.ops.resize import resize_mask
from wsol.schema import IGNORE

Mask = NDArray[np.uint8]
Counts = NDArray[np.int64]


def bin_edges(interval: float) -> NDArray[np.float64]:
    """Return the edges of the score histogram: the thresholds, then 1, 2, 3, so that a score of exactly 1 has a bin."""
    return np.append(np.arange(0, 1, interval), [1.0, 2.0, 3.0])


def combine_masks(instances: Sequence[NDArray[Any]], ignored: NDArray[Any] | None, *, size: tuple[int, int]) -> Mask:
    """Join the instance masks of an image at the evaluation size.

    Args:
        instances: Masks of any size; nearest neighbour, a pixel above 0.5 is foreground. Booleans count as 0 and 1.
        ignored: Mask of pixels to ignore, or None; foreground wins over it.
        size: (H, W).

    Returns:
        uint8 (H, W): 1 foreground, 0 background, 255 ignored.
    """
    truth = np.zeros(size, dtype=np.uint8)
    if ignored is not None:
        truth[_is_set(ignored, size)] = IGNORE
    for mask in instances:
        truth[_is_set(mask, size)] = 1
    return truth


def _is_set(mask: NDArray[Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    return resize_mask(np.ascontiguousarray(mask > 0.5, dtype=np.uint8), size) > 0


class PixelCounts:
    """Histograms of the scores of foreground and background pixels; adding images needs no more memory.

    Args:
        interval: Distance of the thresholds.
    """

    def __init__(self, interval: float = 0.001) -> None:
        self.edges = bin_edges(interval)
        self.counts: Counts = np.zeros((2, len(self.edges) - 1), dtype=np.int64)

    def add(self, scoremap: NDArray[np.float64], truth: Mask) -> None:
        """Count the pixels of one image.

        Args:
            scoremap: float64 (H, W) in [0, 1].
            truth: uint8 (H, W) from `combine_masks`.

        Raises:
            EvalError: When the shapes differ.
        """
        if scoremap.shape != truth.shape:
            raise EvalError(f"the score map is {scoremap.shape} but the mask is {truth.shape}")
        count_scores(scoremap.reshape(-1), truth.reshape(-1), self.edges, self.counts)

    def merge(self, counts: Counts) -> None:
        """Add what another process counted."""
        self.counts += counts

    def precision_recall(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return precision and recall at the left edge of each bin, by descending threshold.

        Raises:
            EvalError: When no image has a foreground pixel.
        """
        background, foreground = self.counts[:, ::-1].cumsum(axis=1)
        if not foreground[-1]:
            raise EvalError("no foreground pixel in the ground truth", hint="check the masks and the split")
        with np.errstate(invalid="ignore", divide="ignore"):
            return foreground / (foreground + background), foreground / foreground[-1]

    def pxap(self) -> float:
        """Return PxAP in percent."""
        precision, recall = self.precision_recall()
        return float(100 * np.sum((precision[1:] * np.diff(recall))[~np.isnan(precision[1:])]))

    def piou(self) -> tuple[float, float]:
        """Return the best pooled IoU of the foreground in percent, and its threshold."""
        background, foreground = self.counts[:, ::-1].cumsum(axis=1)
        ious = foreground / np.maximum(background + foreground[-1], 1)
        at = int(np.argmax(ious))
        return float(100 * ious[at]), float(self.edges[:-1][::-1][at])


@kernel
def count_scores(scores: NDArray[np.float64], truth: Mask, edges: NDArray[np.float64], counts: Counts) -> None:
    """Add scores to histograms with the bins [edge, next edge), the very counts of `np.histogram`.

    Args:
        scores: float64 (N,) in [0, 1].
        truth: uint8 (N,): 0 background, 1 foreground, else not counted.
        edges: float64 (bins + 1,), ascending; all but the last three are evenly spaced from 0.
        counts: int64 (2, bins), background and foreground; added to.
    """
    even = len(edges) - 3
    scale = 1.0 / edges[1] if even > 1 else 1.0
    for at in range(len(scores)):
        if truth[at] > 1:
            continue
        score = scores[at]
        place = min(int(score * scale), even)
        # The guess may be off by one where the edge is rounded.
        while edges[place] > score:
            place -= 1
        while edges[place + 1] <= score:
            place += 1
        counts[truth[at], place] += 1
