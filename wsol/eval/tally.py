"""Counts over a data set: how many images are right, by metric and threshold, in memory that does not grow."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsol.eval.boxes import LevelCurve
from wsol.eval.protocols import Metric, View
from wsol.eval.scoremap import threshold_levels

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """What one image and class contributed; small enough to keep for every image.

    Attributes:
        id: Image id.
        label: Class id.
        rank: How many classes were predicted before the true one; None without logits.
        maxima: Highest level of the map in each view.
        curves: float32 (views, 256) best IoU by integer threshold; NaN without a map. Ratios of areas below a
            million pixels stay on the same side of 0.3, 0.5 and 0.7 in float32.
    """

    id: str
    label: int
    rank: int | None
    maxima: tuple[int, ...]
    curves: NDArray[np.float32]


@dataclass
class Tally:
    """Integer counts, so that their sum does not depend on the order.

    Attributes:
        n: Images (and classes) with boxes.
        ranked: Those with logits.
        top: Those whose true class is among the first k.
        absent: Images without a map of their class, by the rank of the class (0 to 5; 5 stands for later).
        bare: Images (and classes) without ground truth, left out.
        correct: (metric, highest level of the map) to int64 (256,); (metric, -1) to int64 (1,) for fixed thresholds.
        masks: Images whose masks were counted.
        pixels: Score histograms of PxAP, or None.
        units: One row an image.
        failures: Image id to reason.
    """

    n: int = 0
    ranked: int = 0
    top: dict[int, int] = field(default_factory=lambda: {1: 0, 5: 0})
    absent: list[int] = field(default_factory=lambda: [0] * 6)
    bare: int = 0
    correct: dict[tuple[str, int], Counts] = field(default_factory=dict)
    masks: int = 0
    pixels: Counts | None = None
    units: list[Unit] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def add_rank(self, rank: int | None) -> None:
        """Count an image's prediction; None without logits."""
        if rank is not None:
            self.ranked += 1
            for k in self.top:
                self.top[k] += rank < k

    def add_curve(self, metric: Metric, curve: LevelCurve, rank: int | None) -> None:
        """Count an image as right at the thresholds where it is."""
        if metric.top and (rank is None or rank >= metric.top):
            return
        self._add((metric.name, curve.maximum), _right(curve.iou, metric))

    def add_fixed(self, metric: Metric, iou: NDArray[np.float64], rank: int | None) -> None:
        """Count an image as right at the one threshold of a metric."""
        if metric.top and (rank is None or rank >= metric.top):
            return
        self._add((metric.name, -1), _right(iou, metric))

    def _add(self, key: tuple[str, int], right: NDArray[Any]) -> None:
        if key in self.correct:
            self.correct[key] += right
        else:
            self.correct[key] = right.astype(np.int64)

    def merge(self, other: Tally) -> None:
        """Add the counts of another part of the data set; its units are left to the caller."""
        self.n += other.n
        self.ranked += other.ranked
        self.masks += other.masks
        self.bare += other.bare
        self.absent = [a + b for a, b in zip(self.absent, other.absent, strict=True)]
        for k in self.top:
            self.top[k] += other.top[k]
        for key, counts in other.correct.items():
            self._add(key, counts)
        if other.pixels is not None:
            self.pixels = other.pixels if self.pixels is None else self.pixels + other.pixels
        self.failures.update(other.failures)

    def num_correct(self, metric: Metric, thresholds: NDArray[np.float64]) -> Counts:
        """Return how many images are right at each threshold.

        Args:
            metric: Its name was counted.
            thresholds: float64 (T,) in [0, 1].

        Returns:
            int64 (T,).
        """
        total = np.zeros(len(thresholds), dtype=np.int64)
        for (name, maximum), counts in self.correct.items():
            if name == metric.name:
                total += counts[0] if maximum < 0 else counts[threshold_levels(thresholds, maximum)]
        return total


def _right(iou: NDArray[np.float64], metric: Metric) -> NDArray[np.bool_]:
    return iou > metric.iou / 100 if metric.strict else iou >= metric.iou / 100


class UnitFile:
    """The IoU curves of all images in a temporary file, so that a chosen threshold can be applied image by image.

    Args:
        views: Views that have curves.
    """

    def __init__(self, views: Sequence[View]) -> None:
        self.views = tuple(views)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the object)
        self._rows: list[tuple[str, int, int | None, tuple[int, ...]]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def append(self, units: Sequence[Unit]) -> None:
        """Add units at the end."""
        for unit in units:
            self._rows.append((unit.id, unit.label, unit.rank, unit.maxima))
            self._file.write(np.ascontiguousarray(unit.curves).data)

    def ious(self, wanted: Sequence[tuple[View, float]]) -> Iterator[tuple[str, int, int | None, list[float]]]:
        """Yield id, label, rank and the IoU of each wanted view and threshold; NaN for an image without a map."""
        places = [(self.views.index(view), threshold) for view, threshold in wanted]
        self._file.seek(0)
        for image_id, label, rank, maxima in self._rows:
            curves = np.frombuffer(self._file.read(len(self.views) * 1024), np.float32).reshape(-1, 256)
            yield image_id, label, rank, [float(curves[at, int(level * maxima[at])]) for at, level in places]


def group(pairs: Sequence[tuple[int, bool]]) -> dict[int, tuple[int, int]]:
    """Return (right, all) by class."""
    out: dict[int, tuple[int, int]] = {}
    for label, right in pairs:
        hits, count = out.get(label, (0, 0))
        out[label] = (hits + right, count + 1)
    return out
