"""Choice: each batch is mixed by one of several strategies, drawn at random.

The recipes of vision transformers switch so between mixup and CutMix (Touvron et al., "Training data-efficient image
transformers & distillation through attention", ICML 2021, https://arxiv.org/abs/2012.12877). With "none" among the
strategies a batch stays as it is with a probability.
"""

from __future__ import annotations

import math
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


@MIXES.register("choice")
@dataclass(frozen=True)
class Choice(OneOf):
    """One of several strategies, drawn for each batch."""

    family: ClassVar[Family] = "other"
    paper: ClassVar[str] = "Touvron et al., ICML 2021"
    cost: ClassVar[str] = "that of the strategies"

    strategies: tuple[str, ...] = ("mixup: {alpha: 0.8}", "cutmix")
    """Each a name, or a name with options as in 'transmix: {inner: cutmix}'."""
    weights: tuple[float, ...] = ()
    """How often each is drawn, in any unit; by default all equally often."""

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError("no strategies", where="choice", hint="for example mixup cutmix")
        if self.weights and len(self.weights) != len(self.strategies):
            count = f"{len(self.weights)} weights for {len(self.strategies)} strategies"
            raise ConfigError(f"expected one weight a strategy, got {count}", where="choice")
        if self.weights and (min(self.weights) < 0 or not 0 < sum(self.weights) < math.inf):
            raise ConfigError(f"weights must be 0 or more and not all 0, got {self.weights}", where="choice")

    @cached_property
    def parts(self) -> tuple[MixStrategy, ...]:
        """The strategies to choose from."""
        return tuple(from_text(text) for text in self.strategies)

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `choice` (int), and `parts`: a list with what the chosen one draws at its place, None elsewhere."""
        weights = np.array(self.weights or (1.0,) * len(self.parts))
        choice = int(generator.choice(len(self.parts), p=weights / weights.sum()))
        parts = [part.draw(x, generator) if at == choice else None for at, part in enumerate(self.parts)]
        return {"choice": choice, "parts": parts}

    def choose(self, draws: Draws, context: Context | None) -> int:
        """Return the drawn one."""
        return int(draws["choice"])
