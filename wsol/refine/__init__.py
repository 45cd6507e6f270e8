"""From score maps to pseudo-masks: one refiner a file."""

from __future__ import annotations

from typing import Any

from wsol.config import from_dict
from wsol.refine.base import Refiner, to_labels, with_background
from wsol.registry import Registry

__all__ = ["REFINERS", "Refiner", "create", "to_labels", "with_background"]

REFINERS: Registry[type[Refiner]] = Registry("refiner", "wsol.refine", shared=("base",))


def create(name: str, **options: Any) -> Refiner:
    """Make a refiner.

    Args:
        name: Registry name, for example "densecrf".
        options: Fields of its dataclass.

    Returns:
        Callable `(image uint8 (H, W, 3), scores float32 (C, H, W))` -> float32 (C, H, W); channel 0 is background.

    Raises:
        ConfigError: When the name, an option or its value is wrong.
    """
    return from_dict(REFINERS.get(name), options, where=f"refiner '{name}'")
