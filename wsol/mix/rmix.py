"""R-Mix and RL-Mix: keep the most salient patches of two images, mix where both or neither are salient.

Luu, Huang, Ye, "Expeditious Saliency-guided Mix-up through Random Gradient Thresholding", 2022,
https://arxiv.org/abs/2212.04875. Saliency s = sqrt(mean over channels of the squared input gradient), averaged over
the patches of a grid. Of each image the patches with s >= quantile(s, q_i) count as salient, q_i from linspace(0,
0.99, 10). A patch that is salient in one image only comes from that image; all others are w x_i + (1 - w) x_j, w ~
Beta(alpha, alpha). Labels by share of the pixels. q = 0 for all images is mixup. On ImageNet the authors add the loss
of the clean images: `clean` 1.

`policy` chooses the q_i: at random (R-Mix), or learned from the reward of RL-Mix, the cosine between the saliency of
the clean and of the mixed image. The paper's agent decides for a whole batch of fixed size with PPO of another
package; here a policy decides image by image, see `_policy`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from wsol.errors import ConfigError
from wsol.mix import MIXES
from wsol.mix._blend import blend
from wsol.mix._salient import SalientMix, with_clean
from wsol.mix.base import Context, Draws, Family, Mixed, Partner, check_options, draw_partner

if TYPE_CHECKING:
    from torch import Tensor, nn

    from wsol.models.classifier import Classifier

PolicyName = Literal["random", "bandit", "ppo"]


@MIXES.register("rmix")
@dataclass(frozen=True, kw_only=True)
class RMix(SalientMix):
    """Salient patches by random or learned thresholds."""

    family: ClassVar[Family] = "cut"
    paper: ClassVar[str] = "Luu et al., 2022"
    cost: ClassVar[str] = "1 fwd + 1 bwd, twice with a learned policy"

    alpha: float = 1.0
    """w ~ Beta(alpha, alpha); 1.0 on CIFAR, 0.2 on ImageNet."""
    grids: tuple[int, ...] = (2, 4)
    """Patches along a side; one of these is drawn for each batch."""
    policy: PolicyName = "random"
    """Who chooses the quantiles: random (R-Mix), or learned as in RL-Mix: bandit (no look at the image), ppo."""
    partner: Partner = "perm"
    """perm: a random permutation of the batch (CIFAR); flip: the batch in reverse (ImageNet)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options("rmix", alpha=self.alpha, prob=1.0)
        if not self.grids or min(self.grids) < 1:
            raise ConfigError(f"grids must be positive, got {self.grids}", where="rmix")

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `weight` (float), `grid` (int), `uniform` (float (B,), decides the quantiles) and `partner`."""
        return {
            "weight": float(generator.beta(self.alpha, self.alpha)),
            "grid": int(generator.choice(self.grids)),
            "uniform": generator.random(len(x)),
            "partner": draw_partner(len(x), generator, partner=self.partner),
        }

    def own(self, classifier: Classifier) -> nn.Module | None:
        """Return the policy where it is learned."""
        if self.policy == "random":
            return None
        from wsol.mix._policy import Bandit, PolicyGradient

        return Bandit() if self.policy == "bandit" else PolicyGradient()

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Threshold the saliency and mix; see `MixStrategy.mix`."""
        from wsol.mix._policy import Agent, choose, uniform_policy
        from wsol.mix._providers import require

        context = require(context, name="rmix")
        clean, clean_loss = self.look(context, x, y)
        agent = context.own if isinstance(context.own, Agent) else None
        chances = uniform_policy(len(x), clean) if agent is None else agent.chances(clean)
        actions, quantiles = choose(chances, draws["uniform"])
        mixed = mix_patches(x, y, pool(clean, draws["grid"]), quantiles, draws["weight"], draws["partner"])
        if agent is not None:
            agent.remember(clean, actions, mixed.images, mixed.targets)
        return with_clean(mixed, clean_loss)

    def after_step(self, context: Context) -> None:
        """Measure the reward of the last choices, and let the policy learn from it."""
        from wsol.mix._policy import Agent
        from wsol.mix._providers import saliency

        if isinstance(context.own, Agent):
            context.own.learn(lambda images, targets: saliency(context, images, targets, batch_stats=True))


def pool(saliency: Tensor, grid: int) -> Tensor:
    """Average a saliency (B, H, W) over the patches of a square grid and let each map sum to 1: (B, grid, grid)."""
    from torch.nn import functional

    pooled = functional.adaptive_avg_pool2d(saliency[:, None], grid)[:, 0]
    return pooled / pooled.sum((1, 2), keepdim=True).clamp_min(1e-30)


def mix_patches(
    x: Tensor, y: Tensor, saliency: Tensor, quantiles: Tensor, weight: float, partner: NDArray[np.int64]
) -> Mixed:
    """Mix two images by their salient patches; labels by share of the pixels.

    Args:
        x: (B, C, H, W).
        y: Float (B, K).
        saliency: (B, g, g).
        quantiles: (B,) in [0, 1), share of each image's patches that are not salient.
        weight: Share of the own image where both or neither are salient.
        partner: int64 (B,).
    """
    import torch
    from torch.nn import functional

    flat = saliency.flatten(1)
    threshold = torch.quantile(flat, quantiles.to(flat), dim=1).diagonal()
    salient = (flat >= threshold[:, None]).to(x.dtype).view_as(saliency)[:, None]
    own = functional.interpolate(salient, size=x.shape[2:])
    other = own[partner]
    mask = torch.where(own == other, weight, own)
    return blend(x, y, mask, partner)
