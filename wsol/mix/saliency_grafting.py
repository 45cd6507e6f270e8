"""Saliency Grafting: sample salient regions, and weigh the labels by the saliency that got through.

Park, Yang, Shin, Hwang, Yang, "Saliency Grafting: Innocuous Attribution-Guided Mixup with Calibrated Label Mixing",
AAAI 2022, https://arxiv.org/abs/2112.08796. From the paper's description, not verified against code: none is public.
S: input gradient (root mean square over channels), averaged over the cells of a grid, divided by its mean. S' = min(S,
1) keeps more than the peaks; M = S' * Bernoulli(p) with p ~ Beta(alpha, alpha); x = M x_i + (1 - M) x_j. With I(S, M) =
sqrt(sum S^2 M / sum S^2), the own label weighs I(S_i, M) / (I(S_i, M) + I(S_j, 1 - M)).

`own_weight` stays the share of the pixels; only `targets` follow the saliency.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from wsol.errors import ConfigError
from wsol.mix import MIXES
from wsol.mix._blend import blend, tensor_like
from wsol.mix.base import Context, Draws, Family, Mixed, MixStrategy, Partner, check_options, draw_partner

if TYPE_CHECKING:
    from torch import Tensor


@MIXES.register("saliency_grafting")
@dataclass(frozen=True, kw_only=True)
class SaliencyGrafting(MixStrategy):
    """Salient regions at random, labels by saliency."""

    family: ClassVar[Family] = "cut"
    paper: ClassVar[str] = "Park et al., AAAI 2022"
    cost: ClassVar[str] = "1 fwd + 1 bwd"

    alpha: float = 1.0
    """p ~ Beta(alpha, alpha), the chance of each cell, one a batch."""
    grid: int = 8
    """Cells along a side."""
    partner: Partner = "perm"
    """perm: a random permutation of the batch; flip: the batch in reverse."""

    def __post_init__(self) -> None:
        check_options("saliency_grafting", alpha=self.alpha, prob=1.0)
        if self.grid < 1:
            raise ConfigError(f"grid must be positive, got {self.grid}", where="saliency_grafting")

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `cells` (bool (B, grid, grid), the Bernoulli draws) and `partner` (int64 (B,))."""
        chance = generator.beta(self.alpha, self.alpha)
        return {
            "cells": generator.random((len(x), self.grid, self.grid)) < chance,
            "partner": draw_partner(len(x), generator, partner=self.partner),
        }

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Look at the clean images, then graft; see `MixStrategy.mix`."""
        from torch.nn import functional

        from wsol.mix._providers import require, saliency

        context = require(context, name="saliency_grafting")
        pooled = functional.adaptive_avg_pool2d(saliency(context, x, y)[:, None], self.grid)
        return graft(x, y, pooled, draws)


def graft(x: Tensor, y: Tensor, saliency: Tensor, draws: Draws) -> Mixed:
    """Mix by sampled saliency.

    Args:
        x: (B, C, H, W).
        y: Float (B, K).
        saliency: (B, 1, g, g), not negative, of any scale.
        draws: See `SaliencyGrafting.draw`.
    """
    from torch.nn import functional

    partner = draws["partner"]
    mean = saliency.mean((1, 2, 3), keepdim=True).clamp_min(1e-30)
    cells = (saliency / mean).clamp_max(1.0) * tensor_like(draws["cells"], saliency)[:, None]
    result = blend(x, y, functional.interpolate(cells, size=x.shape[2:]), partner)
    own, other = importance(saliency, cells), importance(saliency[partner], 1.0 - cells)
    share = (own / (own + other)).to(y)
    share = share.where(share.isfinite(), result.own_weight)[:, None]
    return replace(result, targets=y * share + result.y_partner * (1.0 - share))


def importance(saliency: Tensor, mask: Tensor) -> Tensor:
    """Return I(S, M) = sqrt(sum S^2 M / sum S^2) in [0, 1], (B,), for maps (B, 1, g, g); 0 without any saliency."""
    squares = (saliency / saliency.amax((1, 2, 3), keepdim=True).clamp_min(1e-30)).square()
    return ((squares * mask).sum((1, 2, 3)) / squares.sum((1, 2, 3)).clamp_min(1e-30)).sqrt()
