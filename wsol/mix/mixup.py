"""Mixup: a weighted sum of two images and of their labels.

Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, https://arxiv.org/abs/1710.09412.
lambda ~ Beta(alpha, alpha), one a batch; x = lambda x + (1 - lambda) x[partner], and the same for y.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wsol.mix import MIXES
from wsol.mix.base import Context, Draws, Mixed, MixStrategy, Partner, check_options, draw_partner

if TYPE_CHECKING:
    from torch import Tensor


@MIXES.register("mixup")
@dataclass(frozen=True)
class Mixup(MixStrategy):
    """Weighted sum of two images."""

    alpha: float = 1.0
    """lambda ~ Beta(alpha, alpha); 1.0 in the paper's CIFAR code, 0.8 for ViTs, 0.2 for ResNets on ImageNet."""
    prob: float = 1.0
    """Probability of mixing a batch."""
    partner: Partner = "perm"
    """perm: a random permutation of the batch; flip: the batch in reverse, as timm does."""

    def __post_init__(self) -> None:
        check_options("mixup", alpha=self.alpha, prob=self.prob)

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `lam` (float) and `partner` (int64 (B,))."""
        mixes = generator.random() < self.prob
        lam = float(generator.beta(self.alpha, self.alpha))
        return {
            "lam": lam if mixes else 1.0,
            "partner": draw_partner(len(x), generator, partner=self.partner),
        }

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Add the batch and its partners; see `MixStrategy.mix`."""
        lam, partner = draws["lam"], draws["partner"]
        y_partner = y[partner]
        return Mixed(
            images=x * lam + x[partner] * (1.0 - lam),
            targets=y * lam + y_partner * (1.0 - lam),
            y_own=y,
            y_partner=y_partner,
            partner=partner,
            own_weight=y.new_full((len(x),), lam),
            own_mask=y.new_full((1, 1, 1, 1), lam).expand(len(x), 1, *x.shape[2:]),
        )
