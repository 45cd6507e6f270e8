"""Options of `wsol eval loc` and `wsol eval seg`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wsol.config import neutral
from wsol.errors import ConfigError
from wsol.eval.protocols import BENCHMARK, choose


@dataclass(frozen=True, kw_only=True)
class TruthOptions:
    """Which ground truth to measure against, and where the result goes."""

    data: str | None = None
    """Data set with the ground truth; default: the one the run was made from."""
    root: Path | None = None
    """Folder of the data set."""
    split: str | None = None
    """Split; default: the one the run was made from."""
    data_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the data set."""
    limit: int | None = None
    """Only the first N images."""
    worst: int = 10
    """How many of the worst images to list."""
    out: Path | None = neutral(default=None)
    """Where metrics.json and curves.csv go; default: runs/eval/NAME-loc or NAME-seg."""
    workers: int = neutral(default=2)
    """Processes; the result is the same for any number."""
    json: bool = neutral(default=False)
    """Print JSON instead of tables."""


@dataclass(frozen=True, kw_only=True)
class LocConfig(TruthOptions):
    """Score maps against boxes and masks: MaxBoxAcc, MaxBoxAccV2, GT-known, Top-1, Top-5, PxAP."""

    maps: Path
    """Run folder of wsol cam, or a folder of .npy score maps (float64, one file an image) with --metadata."""
    metadata: Path | None = None
    """Folder with image_ids.txt, class_labels.txt, image_sizes.txt and localization.txt of one split."""
    masks: Path | None = None
    """Folder that the masks named in the metadata are relative to; default: --root, else the metadata folder."""
    protocol: tuple[str, ...] = BENCHMARK
    """Protocols by name, or all."""
    curve_interval: float = 0.001
    """Distance of the thresholds; 0.001 reaches every one of the 255 levels."""
    size: int = 224
    """Side of the square in which boxes and masks are compared."""
    threshold: float | None = None
    """A fixed threshold for all metrics, as a fraction of each map's maximum."""
    threshold_from: Path | None = None
    """metrics.json of another split: apply the thresholds chosen there."""

    def validate(self) -> None:
        """Check values that a type cannot.

        Raises:
            ConfigError: Naming the flag.
        """
        choose(self.protocol)
        if not 0.0 < self.curve_interval <= 1.0:
            raise ConfigError(f"--curve-interval must lie in (0, 1], got {self.curve_interval}")
        if self.size < 1:
            raise ConfigError(f"--size must be at least 1, got {self.size}")


@dataclass(frozen=True, kw_only=True)
class SegConfig(TruthOptions):
    """Score maps or masks against ground-truth masks: mIoU over a data set, pixels labelled 255 ignored."""

    pred: Path
    """Run folder of wsol cam (its maps are thresholded), a run with masks/, or any folder of PNG masks by image id."""
    use: Literal["auto", "maps", "masks"] = "auto"
    """maps, masks, or auto: masks where the run has any."""
    sweep: tuple[float, float, float] = (0.0, 0.6, 0.01)
    """First, last and step of the background score that is swept over maps."""
    alphas: tuple[float, ...] = ()
    """Also sweep the background score (1 - max)^alpha over these powers."""
    threshold: float | None = None
    """A fixed background score."""
    threshold_from: Path | None = None
    """metrics.json of another split: apply the background score chosen there."""
    boundary: float | None = None
    """Also the boundary F-score of masks: how far borders may be apart, as a fraction of the diagonal (0.0075)."""

    def validate(self) -> None:
        """Check values that a type cannot.

        Raises:
            ConfigError: Naming the flag.
        """
        first, last, step = self.sweep
        if self.boundary is not None and not 0 < self.boundary < 1:
            raise ConfigError(f"--boundary must lie between 0 and 1, got {self.boundary}", hint="for example 0.0075")
        if not 0.0 <= first <= last <= 1.0 or step <= 0:
            raise ConfigError(f"--sweep needs 0 <= first <= last <= 1 and a positive step, got {self.sweep}")
        if any(alpha <= 0 for alpha in self.alphas):
            raise ConfigError(f"--alphas must be positive, got {self.alphas}")
