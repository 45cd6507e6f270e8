"""AutoMix: a small network learns where to mix, from the features of both images.

Liu, Li, Wu, Liu, Chen, Wu, Li, "AutoMix: Unveiling the Power of Mixup for Stronger Classifiers", ECCV 2022,
https://arxiv.org/abs/2103.13027; variant "samix": Li, Liu, Wang, Wu, Liu, Li, "Boosting Discriminative Visual
Representation Learning with Scenario-Agnostic Mixup", https://arxiv.org/abs/2111.15454 (its mixing block; not its
contrastive losses). Formulas as in openmixup. A moving average k of the classifier q looks at the clean images; from
its features in the middle the block draws the partner's share m of each pixel, for two ratios ~ Beta(alpha, alpha),
each with partners of its own.

    loss = CE(h(q(x)), y) + CE(q(mixed with m as a constant), y mixed)
         + CE(k(mixed with m), y mixed) + w max(|1 - mean(m) - lambda| - 0.1, 0)

q learns from the first two, the block from the others; w falls from 0.1 to 0 by a cosine. Labels are mixed by the
nominal lambda. h is a head of its own for the clean images; the classifier's head learns the mixed ones. Where lambda
is within 0.08 of 0 or 1, q sees plain mixup. k keeps 0.999 of itself a step, from a tenth of the training on more, up
to 0.99999.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray

from wsol.mix import MIXES
from wsol.mix.base import Context, Draws, Family, Mixed, MixStrategy, Output, check_options

if TYPE_CHECKING:
    from torch import Tensor

    from wsol.mix._mixblock import AutoMixNetworks
    from wsol.models.classifier import Classifier

_MARGIN = 0.1  # by how much the share of a mask may miss lambda at no loss
_PLAIN = 0.08  # this near to 0 and 1 the classifier sees plain mixup
_START, _END = 0.999, 0.99999  # what the moving average keeps


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AutoMixed(Mixed):
    """A mixed batch for the classifier, and one for the moving average.

    Attributes:
        clean: (B, C, H, W), the images as they are.
        taught: (B, C, H, W), mixed images whose masks have a graph.
        taught_targets: (B, K), their labels.
        mask_loss: Scalar, by how much the masks miss their lambda, with graph.
    """

    clean: Tensor
    taught: Tensor
    taught_targets: Tensor
    mask_loss: Tensor


@MIXES.register("automix")
@dataclass(frozen=True)
class AutoMix(MixStrategy):
    """Masks from a network that is trained along."""

    family: ClassVar[Family] = "mixup"
    paper: ClassVar[str] = "Liu et al., ECCV 2022"
    cost: ClassVar[str] = "3 fwd + 2 bwd"

    variant: Literal["automix", "samix"] = "automix"
    """Which mixing block: "samix" scales the features by lambda and looks at both images for the value."""
    alpha: float = 2.0
    """lambda ~ Beta(alpha, alpha)."""
    mask_weight: float = 0.1
    """w: weight of the loss on the masks' area at the start."""

    def __post_init__(self) -> None:
        check_options("automix", alpha=self.alpha, prob=1.0)

    def check(self, classifier: Classifier) -> None:
        """Refuse models whose stages timm does not list."""
        from wsol.mix._mixblock import middle_layer

        middle_layer(classifier)

    def own(self, classifier: Classifier) -> AutoMixNetworks:
        """Return the mixing block, the head for clean images and the moving average."""
        from wsol.mix._mixblock import AutoMixNetworks

        return AutoMixNetworks(classifier, variant=self.variant)

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `lams` (two floats: for the moving average, for the classifier) and `partners` (int64 (2, B))."""
        lams = float(generator.beta(self.alpha, self.alpha)), float(generator.beta(self.alpha, self.alpha))
        return {"lams": lams, "partners": np.stack([generator.permutation(len(x)) for _ in range(2)])}

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Draw masks from the features of the clean images; see `MixStrategy.mix`."""
        import torch

        from wsol.mix._providers import require

        context = require(context, name="automix")
        networks = cast("AutoMixNetworks", context.own)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=context.amp):
            features = networks.features(context.classifier, x)
        (taught_lam, lam), (taught_partner, partner) = draws["lams"], draws["partners"]
        with torch.enable_grad():
            taught_mask = _mask(networks, features, taught_partner, taught_lam, x)
            taught = x * (1 - taught_mask) + x[taught_partner] * taught_mask
        if _PLAIN < lam < 1 - _PLAIN:
            with torch.no_grad():
                mask = _mask(networks, features, partner, lam, x)
        else:
            mask = x.new_full((1, 1, 1, 1), 1 - lam).expand(len(x), 1, *x.shape[2:])
        y_partner = y[partner]
        return AutoMixed(
            images=x * (1 - mask) + x[partner] * mask,
            targets=y * lam + y_partner * (1 - lam),
            y_own=y,
            y_partner=y_partner,
            partner=partner,
            own_weight=y.new_full((len(x),), lam),
            own_mask=1 - mask,
            clean=x,
            taught=taught,
            taught_targets=y * taught_lam + y[taught_partner] * (1 - taught_lam),
            mask_loss=area_loss(taught_mask, taught_lam),
        )

    def loss(self, mixed: Mixed, output: Output, context: Context) -> Tensor:
        """Return the losses of the classifier and of the block together."""
        import torch

        mixed, networks = cast(AutoMixed, mixed), cast("AutoMixNetworks", context.own)
        module = context.classifier.module
        with torch.autocast(mixed.clean.device.type, dtype=torch.bfloat16, enabled=context.amp):
            pooled = module.forward_head(module.forward_features(mixed.clean), pre_logits=True)
            taught = networks.encoder(mixed.taught)
        total = context.criterion(networks.head(pooled.float()), mixed.y_own)
        total = total + context.criterion(output.logits, mixed.targets)
        total = total + context.criterion(taught.float(), mixed.taught_targets)
        weight = self.mask_weight * (1 + math.cos(math.pi * context.epoch / context.epochs)) / 2
        return total + weight * mixed.mask_loss

    def after_step(self, context: Context) -> None:
        """Move the average towards the classifier."""
        networks = cast("AutoMixNetworks", context.own)
        networks.follow(context.classifier.module, keep=kept_share(context.epoch / context.epochs))


def area_loss(mask: Tensor, lam: float) -> Tensor:
    """Return by how much the mean share of the own images misses lambda, beyond the margin of 0.1; a scalar.

    Args:
        mask: Shares of the partners, any shape.
        lam: Nominal share of the own images.
    """
    return ((1 - mask.mean() - lam).abs() - _MARGIN).clamp_min(0)


def kept_share(progress: float) -> float:
    """Return what the moving average keeps of itself a step, for a share of the training in [0, 1]."""
    late = max(0.0, (progress - 0.1) / 0.9)
    return _END - (_END - _START) * (1 + math.cos(math.pi * late)) / 2


def _mask(networks: AutoMixNetworks, features: Tensor, partner: NDArray[np.int64], lam: float, x: Tensor) -> Tensor:
    """Return the partner's share of each pixel, (B, 1, H, W)."""
    from wsol.mix._tokens import to_pixels

    return to_pixels(networks.block(features, features[partner], lam), (x.shape[2], x.shape[3])).to(x)
