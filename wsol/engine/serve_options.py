"""Options of `wsol demo --serve`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wsol.engine.demo_options import PhotoOptions
from wsol.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ServeConfig(PhotoOptions):
    """A page in the browser: drop a photo, choose classes, a method and a refiner; see maps, mask, boxes and times."""

    host: str = "127.0.0.1"
    """Address to listen on; the default is reached from this machine only."""
    port: int | None = None
    """Port; default: the first free one from 7860 on."""
    classes: tuple[str, ...] = ()
    """Texts for a model that reads text (clip:NAME), separated by commas; other models bring their classes along."""
    max_megabytes: float = 20.0
    """Largest file, in 2^20 bytes."""
    max_megapixels: float = 50.0
    """Largest photo, in 10^6 pixels."""

    def validate(self) -> None:
        """Check values that a type cannot.

        Raises:
            ConfigError: Naming the flag.
        """
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ConfigError(f"--port must lie in [1, 65535], got {self.port}")
        for name in ("max_megabytes", "max_megapixels"):
            if not 0 < getattr(self, name) < math.inf:
                what = f"must be a positive number, got {getattr(self, name)}"
                raise ConfigError(f"--{name.replace('_', '-')} {what}")
