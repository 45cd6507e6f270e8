"""Curves over the threshold: their files, and the one place where thresholds are chosen."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsol.errors import EvalError, StoreError
from wsol.schema import EvalResult
from wsol.store.atomic import write_text

Grid = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Choice:
    """How thresholds are chosen, for all metrics of a result alike.

    Attributes:
        source: What `EvalResult.threshold_source` says.
        fixed: One threshold for everything, or None.
        by_metric: Thresholds of another result, by metric, or None.
    """

    source: str
    fixed: float | None = None
    by_metric: Mapping[str, float] | None = None

    def of(self, metric: str, *, own: float | None = None) -> float | None:
        """Return the threshold of a metric, or None where the best on the curve is to be taken.

        Args:
            metric: Name of the metric.
            own: The threshold that its paper fixes.

        Raises:
            EvalError: When the other result holds none for it.
        """
        if self.fixed is not None:
            return self.fixed
        if self.by_metric is None or own is not None:
            return own
        if metric not in self.by_metric:
            raise EvalError(f"the other result chose no threshold for {metric}", hint="evaluate it with that protocol")
        return self.by_metric[metric]


def choose_by(split: str, *, fixed: float | None = None, other: Path | None = None) -> Choice:
    """Return the rule that the flags ask for: best on this split, a fixed threshold, or those of another result.

    Args:
        split: Name of the split that is evaluated.
        fixed: A threshold in [0, 1].
        other: `metrics.json` of a result on another split, or the folder that holds it.

    Raises:
        EvalError: When both are given, or the threshold is out of range.
        StoreError: When the file is no result.
    """
    if fixed is not None and other is not None:
        raise EvalError("--threshold and --threshold-from exclude each other")
    if fixed is not None:
        if not 0.0 <= fixed <= 1.0:
            raise EvalError(f"--threshold must lie in [0, 1], got {fixed}")
        return Choice("fixed", fixed=fixed)
    if other is None:
        return Choice(f"best on {split}")
    result = read_result(other)
    return Choice(f"chosen on {result.split}", by_metric=dict(result.threshold))


def read_result(path: Path) -> EvalResult:
    """Read `metrics.json`, given the file or its folder.

    Raises:
        StoreError: When it is missing or no result.
    """
    path = path / "metrics.json" if path.is_dir() else path
    try:
        return EvalResult.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"cannot read: {error}", where=path, hint="give metrics.json of wsol eval") from error
    except StoreError as error:
        raise StoreError(error.what, where=path) from error


def best_at(curve: Grid) -> int:
    """Return the index of the highest value, the first one on ties."""
    return int(np.argmax(curve))


def write_curves(path: Path, curves: Mapping[str, Mapping[str, list[float]]]) -> None:
    """Write curves as CSV with the columns curve, threshold, value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["curve", "threshold", "value"])
    for name, curve in curves.items():
        writer.writerows([name, f"{x:.6g}", f"{y:.10g}"] for x, y in zip(curve["x"], curve["y"], strict=True))
    write_text(path, text.getvalue())
