"""Mixup: a weighted sum of two images and of their labels.

Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, https://arxiv.org/abs/1710.09412.
lambda ~ Beta(alpha, alpha); x = lambda x + (1 - lambda) x[partner], and the same for y. The paper draws one lambda a
batch, timm also one a pair or one an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from wsol.mix import MIXES
from wsol.mix._blend import blend, tensor_like
from wsol.mix._boxes import Mode, draw_lam
from wsol.mix.base import Context, Draws, Family, Mixed, MixStrategy, Partner, check_options, draw_partner

if TYPE_CHECKING:
    from torch import Tensor


@MIXES.register("mixup")
@dataclass(frozen=True)
class Mixup(MixStrategy):
    """Weighted sum of two images."""

    family: ClassVar[Family] = "mixup"
    paper: ClassVar[str] = "Zhang et al., ICLR 2018"

    alpha: float = 1.0
    """lambda ~ Beta(alpha, alpha); 1.0 in the paper's CIFAR code, 0.8 for ViTs, 0.2 for ResNets on ImageNet."""
    prob: float = 1.0
    """Probability of mixing a batch (a pair, an image)."""
    partner: Partner = "perm"
    """perm: a random permutation of the batch; flip: the batch in reverse, as timm does."""
    mode: Mode = "batch"
    """One lambda a batch, a pair (the i-th image from the front and the back, meant for partner flip) or an image."""

    def __post_init__(self) -> None:
        check_options("mixup", alpha=self.alpha, prob=self.prob)

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `lam` (float, or (B,) for pair and elem) and `partner` (int64 (B,))."""
        lam = draw_lam(len(x), generator, alpha=self.alpha, prob=self.prob, mode=self.mode)
        return {"lam": lam, "partner": draw_partner(len(x), generator, partner=self.partner)}

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Add the batch and its partners; see `MixStrategy.mix`."""
        lam = tensor_like(np.atleast_1d(draws["lam"]), y)
        return blend(x, y, lam[:, None, None, None], draws["partner"], weight=lam)
