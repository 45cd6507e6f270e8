"""Training strategies that mix images and labels: one strategy a file."""

from __future__ import annotations

from typing import Any

from wsol.config import from_dict
from wsol.mix.base import Context, Draws, Mixed, MixStrategy, Output, StepStrategy
from wsol.registry import Registry

__all__ = ["MIXES", "Context", "Draws", "MixStrategy", "Mixed", "Output", "StepStrategy", "create"]

MIXES: Registry[type[MixStrategy | StepStrategy]] = Registry("mix strategy", "wsol.mix", shared=("base",))


def create(name: str, **options: Any) -> MixStrategy | StepStrategy:
    """Make a strategy by its name.

    Args:
        name: Registry name: "none", "mixup", "cutmix", ...
        **options: Fields of that strategy.

    Raises:
        ConfigError: On an unknown strategy or option, or a value that it cannot take.
    """
    return from_dict(MIXES.get(name), options, where=f"mix strategy '{name}'")
