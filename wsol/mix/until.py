"""Until: mix for the first epochs only, then train on the images as they are.

The learning on clean images at the end is an option of timm (`--mixup-off-epoch`) and of the recipes made with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from wsol.errors import ConfigError
from wsol.mix import MIXES, from_text
from wsol.mix._compose import OneOf
from wsol.mix.base import Context, Draws, Family, MixStrategy

if TYPE_CHECKING:
    from torch import Tensor


@MIXES.register("until")
@dataclass(frozen=True)
class Until(OneOf):
    """A strategy that stops after some epochs."""

    family: ClassVar[Family] = "other"
    cost: ClassVar[str] = "that of the strategy"

    inner: str = "cutmix"
    """The strategy: its name, or with options as in 'cutmix: {alpha: 0.5}'."""
    epochs: int = 1
    """How many epochs to mix for."""

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ConfigError(f"epochs must be 0 or more, got {self.epochs}", where="until")
        self.parts  # noqa: B018 (a mistake in the strategy ends here)

    @cached_property
    def parts(self) -> tuple[MixStrategy, ...]:
        """The strategy, and none."""
        return from_text(self.inner), from_text("none")

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `parts`: what the strategy draws, and nothing."""
        return {"parts": [self.parts[0].draw(x, generator), {}]}

    def choose(self, draws: Draws, context: Context | None) -> int:
        """Return the strategy in the first epochs."""
        return 0 if context is None or context.epoch < self.epochs else 1
