"""LUMix: disturb the label weights of a mixed image, by what the network sees in it and by noise.

Sun, Chen, He, Yuille, Torr, Bai, "LUMix: Improving Mixup by Better Modelling Label Uncertainty", ICASSP 2024,
https://arxiv.org/abs/2211.15846. From the paper's description, not verified against code (none was published); the
defaults of the two shares are ours. Weight of the own label, for each image:

    lambda = lambda0 (1 - r_s - r_r) + r_s lambda_s + r_r lambda_r

lambda0: weight by area; lambda_s = p_i / (p_i + p_j), the network's own probabilities (softmax, without gradient) of
the two labels in the mixed image; lambda_r ~ Beta(alpha, alpha). With several labels an image, p is the mean over them.
An image without labels, or beside one without, keeps lambda0 in the place of lambda_s.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from wsol.errors import ConfigError
from wsol.mix import MIXES
from wsol.mix._compose import Over
from wsol.mix.base import Context, Draws, Family, Mixed, Output, check_options

if TYPE_CHECKING:
    from torch import Tensor

    from wsol.models.classifier import Classifier


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class NoisyMixed(Mixed):
    """A mixed batch with drawn weights.

    Attributes:
        noise: Float (B,), lambda_r.
    """

    noise: Tensor


@MIXES.register("lumix")
@dataclass(frozen=True, kw_only=True)
class LUMix(Over):
    """Disturbed label weights, over any strategy."""

    family: ClassVar[Family] = "cut"
    paper: ClassVar[str] = "Sun et al., ICASSP 2024"

    seen: float = 0.4
    """r_s: share of the weight that the network's own prediction decides."""
    noise: float = 0.1
    """r_r: share of the weight that is drawn."""
    alpha: float = 1.0
    """lambda_r ~ Beta(alpha, alpha)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options("lumix", alpha=self.alpha, prob=1.0)
        if min(self.seen, self.noise) < 0 or self.seen + self.noise > 1:
            what = f"seen and noise must be shares with a sum of at most 1, got {self.seen} and {self.noise}"
            raise ConfigError(what, where="lumix")

    def check(self, classifier: Classifier) -> None:
        """Refuse inner strategies with labels of their own, and what those refuse."""
        from wsol.mix._tokens import require_plain

        require_plain(self.strategy, name="lumix")
        super().check(classifier)

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `inner` (what the inner strategy draws) and `noise` (float (B,))."""
        inner = self.strategy.draw(x, generator)
        return {"inner": inner, "noise": generator.beta(self.alpha, self.alpha, size=len(x))}

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Mix as the inner strategy does, and remember the noise."""
        mixed = self.strategy.mix(x, y, draws["inner"], context)
        known = {item.name: getattr(mixed, item.name) for item in fields(Mixed)}
        return NoisyMixed(**known, noise=y.new_tensor(draws["noise"]))

    def relabel(self, mixed: Mixed, output: Output) -> Tensor:
        """Return targets (B, K) with disturbed weights."""
        area, noise = mixed.own_weight, cast(NoisyMixed, mixed).noise
        seen = seen_share(output.logits, mixed.y_own, mixed.y_partner, default=area)
        weight = area * (1 - self.seen - self.noise) + self.seen * seen + self.noise * noise
        return mixed.y_own * weight[:, None] + mixed.y_partner * (1 - weight[:, None])


def seen_share(logits: Tensor, y_own: Tensor, y_partner: Tensor, *, default: Tensor) -> Tensor:
    """Return p_own / (p_own + p_partner), (B,), with p the mean softmax of the labels; without gradient.

    Args:
        logits: (B, K).
        y_own: (B, K).
        y_partner: (B, K).
        default: (B,), where one of the two images has no label.
    """
    import torch

    from wsol.mix._tokens import present

    odds = []
    for y in (y_own, y_partner):
        # log of the mean over the labels; softmax's own normalization cancels in the ratio
        labels = present(y) > 0
        inside = logits.detach().float().masked_fill(~labels, -torch.inf)
        odds.append(inside.logsumexp(1) - labels.sum(1).log())
    share = torch.sigmoid(odds[0] - odds[1])
    known = (present(y_own).amax(1) > 0) & (present(y_partner).amax(1) > 0)
    return torch.where(known, share, default.to(share))
