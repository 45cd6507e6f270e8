"""No mixing: the batch as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wsol.mix import MIXES
from wsol.mix.base import Context, Draws, Mixed, MixStrategy

if TYPE_CHECKING:
    from torch import Tensor


@MIXES.register("none")
@dataclass(frozen=True)
class Unmixed(MixStrategy):
    """Every image is its own partner."""

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw nothing."""
        return {}

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Wrap the batch; see `MixStrategy.mix`."""
        whole = y.new_ones((1, 1, 1, 1)).expand(len(x), 1, *x.shape[2:])
        return Mixed(
            images=x,
            targets=y,
            y_own=y,
            y_partner=y,
            partner=np.arange(len(x)),
            own_weight=y.new_ones(len(x)),
            own_mask=whole,
        )
