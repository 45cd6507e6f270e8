"""Options of `wsol refine`: what the flags, the recipes and the Python function share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wsol.config import neutral
from wsol.engine.options import JobOptions
from wsol.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RefineConfig(JobOptions):
    """Score maps to pseudo-masks: resumable, sharded, palette PNG an image."""

    maps: Path
    """Run folder of wsol cam."""
    method: str = "threshold"
    """Refiner, or several to run one after the other: pamr,densecrf (wsol info lists all)."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the refiner; of several, one mapping a name."""
    background: float | Literal["otsu"] | None = 0.25
    """Constant background score; otsu: a threshold for each image."""
    background_low: float | None = None
    """Second, lower background score: pixels that are foreground only under this one become 255 (ignored)."""
    alpha: float | None = None
    """Background score (1 - max)^alpha; takes the place of --background."""
    min_confidence: float = 0.0
    """Pixels whose best score is lower become 255 (ignored)."""
    saliency: Path | None = None
    """Folder of saliency maps ID.png, for getam_completion: 0 where there is no object."""
    confidence: bool = False
    """Also write the confidence of each mask as an 8-bit PNG."""
    scores: bool = False
    """Also write the refined scores of the classes as maps/, for wsol eval loc."""
    store: Literal["files", "shards"] = neutral(default="files")
    """files: one of each kind an image; shards: 4096 images to a tar file, for data sets of many files."""
    coco: bool = neutral(default=False)
    """Also write pseudo.coco.json (RLE)."""
    engine: Literal["local", "ray"] = neutral(default="local")
    """ray: a process on each CPU of the cluster at RAY_ADDRESS, or of this machine, in place of --workers; it needs
    the folders where this machine has them."""

    def validate(self) -> None:
        """Check values that a type cannot.

        Raises:
            ConfigError: Naming the flag.
        """
        super().validate()
        if self.alpha is None and self.background is None:
            raise ConfigError("no background score", hint="give --background or --alpha")
        if self.background_low is not None:
            if self.alpha is not None:
                raise ConfigError("--background-low goes with --background, not with --alpha")
            limit = self.background if isinstance(self.background, float) else 1.0
            if not 0.0 <= self.background_low < limit:
                raise ConfigError(f"--background-low must lie in [0, {limit}), got {self.background_low}")
        if not 0.0 <= self.min_confidence <= 1.0:
            raise ConfigError(f"--min-confidence must lie in [0, 1], got {self.min_confidence}")
