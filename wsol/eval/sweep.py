"""Every background score at once: pixels counted by their best class score, not once a threshold.

With background b in front, a pixel takes its best class where that class scores more than b. So it is enough to know,
for each pixel, its best class, its true class, and how many of the background scores lie below its best score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsol.errors import EvalError
from wsol.ops.confusion import iou_per_class
from wsol.schema import IGNORE, ScoreMaps

Counts = NDArray[np.int64]
_ONE = 0x3F800000  # the bits of 1.0 in float32


def background_scores(sweep: tuple[float, float, float]) -> list[float]:
    """Return the background scores of a sweep from its first, its last and its step; none lies above the last."""
    first, last, step = sweep
    return [round(first + step * at, 10) for at in range(int((last - first) / step + 1e-9) + 1)]


def constant_cut(background: float) -> np.float32:
    """Return the least float32 score that beats a constant background score."""
    return np.float32(np.nextafter(np.float32(background), np.float32(np.inf)))


def power_cut(alpha: float) -> np.float32:
    """Return the least float32 score m in [0, 1] that beats the background score (1 - m)^alpha.

    The background falls as m rises, so bisection over the floats finds it.
    """
    low, high = 0, _ONE
    while low < high:
        middle = (low + high) // 2
        score = np.array([middle], dtype=np.uint32).view(np.float32)
        if (score > np.clip(1 - score, 0, 1) ** alpha)[0]:
            high = middle
        else:
            low = middle + 1
    return np.float32(np.array([low], dtype=np.uint32).view(np.float32)[0])


@dataclass
class SweepCounts:
    """Pixel counts of a data set by class and by the number of cuts that the best score reaches.

    Attributes:
        cuts: float32 (J,) ascending; a pixel is foreground under cut j when its best score is at least cuts[j].
        predicted: int64 (C, J + 1), pixels by best class (background excluded: row 0 is empty).
        hits: int64 (C, J + 1), those whose true class it is; row 0 holds the truly background pixels.
        true: int64 (C,), pixels by true class.
    """

    cuts: NDArray[np.float32]
    predicted: Counts
    hits: Counts
    true: Counts

    @classmethod
    def empty(cls, cuts: NDArray[np.float32], num_classes: int) -> SweepCounts:
        """Return zeros for C classes including background."""
        shape = (num_classes, len(cuts) + 1)
        return cls(cuts, np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(num_classes, np.int64))

    def add(self, maps: ScoreMaps, truth: NDArray[np.uint8]) -> SweepCounts:
        """Count one image and return its own counts too.

        Args:
            maps: Score maps; brought to the size of the image.
            truth: uint8 (H, W): 0 background, class id + 1, 255 ignored.

        Raises:
            EvalError: When the sizes differ or a map belongs to no class.
        """
        if truth.shape != maps.image_size:
            raise EvalError(f"the image is {maps.image_size} but its mask is {truth.shape}", where=maps.id)
        classes = len(self.true)
        if len(maps.class_ids) and not 0 <= int(maps.class_ids.min()) <= int(maps.class_ids.max()) < classes - 1:
            raise EvalError(f"a map of class {int(maps.class_ids.max())}, but there are {classes - 1}", where=maps.id)
        valid = (truth < classes) & (truth != IGNORE)
        true = truth[valid].astype(np.int64)
        scores = maps.at_image_size()[:, valid]
        if len(scores):
            label = maps.class_ids.astype(np.int64)[scores.argmax(axis=0)] + 1
            reached = np.searchsorted(self.cuts, scores.max(axis=0), side="right")
        else:
            label = np.zeros(len(true), np.int64)
            reached = np.zeros(len(true), np.int64)
        own = SweepCounts.empty(self.cuts, classes)
        columns = len(self.cuts) + 1
        own.true += np.bincount(true, minlength=classes)
        own.predicted += _histogram(label, reached, classes, columns)
        at = (label == true) | (true == 0)
        own.hits += _histogram(true[at], reached[at], classes, columns)
        own.predicted[0] = 0
        self.merge(own)
        return own

    def merge(self, other: SweepCounts) -> None:
        """Add the counts of another part of the data set."""
        self.predicted += other.predicted
        self.hits += other.hits
        self.true += other.true

    def outcome(self, at: int) -> tuple[Counts, Counts]:
        """Return hits and predicted pixels of each class under one cut, int64 (C,) each."""
        hits, predicted = self.hits[:, at + 1 :].sum(axis=1), self.predicted[:, at + 1 :].sum(axis=1)
        hits[0] = self.hits[0, : at + 1].sum()
        predicted[0] = self.true.sum() - predicted[1:].sum()
        return hits, predicted

    def mean_ious(self) -> NDArray[np.float64]:
        """Return the mean IoU over the classes with true pixels under each cut, float64 (J,); NaN without pixels."""
        scores = np.full(len(self.cuts), np.nan)
        present = self.true > 0
        for at in range(len(self.cuts)) if present.any() else ():
            hits, predicted = self.outcome(at)
            scores[at] = (hits[present] / (self.true + predicted - hits)[present]).mean()
        return scores


def scores_of(hits: Counts, *, predicted: Counts, true: Counts) -> dict[str, NDArray[np.float64]]:
    """Return IoU, precision and recall of each class, float64 (C,); NaN for a class without true pixels.

    Args:
        hits: int64 (C,) true positives.
        predicted: int64 (C,) pixels predicted as the class.
        true: int64 (C,) pixels of the class.
    """
    present = true > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        values = {"IoU": hits / (true + predicted - hits), "precision": hits / predicted, "recall": hits / true}
    return {name: np.where(present, value, np.nan) for name, value in values.items()}


def matrix_scores(matrix: Counts) -> dict[str, NDArray[np.float64]]:
    """Return the same from a confusion matrix, int64 (C, C)."""
    scores = scores_of(np.diag(matrix), predicted=matrix.sum(axis=0), true=matrix.sum(axis=1))
    return {**scores, "IoU": iou_per_class(matrix)}


def _histogram(rows: NDArray[Any], columns: NDArray[Any], height: int, width: int) -> Counts:
    return np.bincount(rows * width + columns, minlength=height * width).reshape(height, width)
