"""Options of `wsol bench io`: those of `wsol cam`, with a refiner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsol.config import neutral
from wsol.engine.options import CamConfig


@dataclass(frozen=True, kw_only=True)
class BenchIoConfig(CamConfig):
    """What each stage of wsol cam and wsol refine costs an image, and which of them bounds the job."""

    out: Path = neutral(default=Path("runs/bench-io"))
    """Folder for the files of the trial and bench.json: on the disk that the job will write to."""
    limit: int | None = neutral(default=64)
    """Only the first N images."""
    refiner: str | None = None
    """Also measure wsol refine with this chain, for example densecrf; default: wsol cam alone."""
    refiner_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the refiner."""
    json: bool = neutral(default=False)
    """Print JSON instead of a table."""
