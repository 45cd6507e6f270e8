"""Options of `wsol refine instances`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wsol.engine.options import JobOptions
from wsol.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class InstanceConfig(JobOptions):
    """Score maps to objects with masks, as instances.coco.json: resumable, sharded."""

    maps: Path
    """Run folder of wsol cam."""
    method: Literal["irn"] = "irn"
    """Refiner that knows centroids."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the refiner."""
    background: float = 0.25
    """Score of the background against the walked scores."""

    def validate(self) -> None:
        """Check values that a type cannot.

        Raises:
            ConfigError: Naming the flag.
        """
        super().validate()
        if not 0 <= self.background <= 1:
            raise ConfigError(f"--background must lie in [0, 1], got {self.background}")
        if self.options.get("checkpoint") is None:
            raise ConfigError("no network", hint="give --options.checkpoint RUN of wsol refine train-affinity")
