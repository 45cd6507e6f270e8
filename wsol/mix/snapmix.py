"""SnapMix: paste a box of another image, and weigh the labels by what class activation maps see in the boxes.

Huang, Wang, Tao, "SnapMix: Semantically Proportional Mixing for Augmenting Fine-grained Data", AAAI 2021,
https://arxiv.org/abs/2012.04846. Two boxes by the rule of CutMix, each with its own lambda and centre; the partner's
box is resized (bilinear, corners aligned) into the own one. The class activation map of each image's label (relu of the
last features weighed by the linear layer, plus bias), enlarged, minus its minimum and divided by its sum, says how much
of the class a box holds. The own label weighs 1 - share(own map, own box), the partner's share(partner's map, partner's
box). These do not sum to 1, by design. Where both images have the same label, each of the two weights becomes the sum
of both, as in the authors' code. Nothing is mixed when a box is empty; a label whose map is flat, for example a single
cell, is weighed by the area.

With several labels an image, each class is weighed by its own map, labels that are only smoothing by the area, and
targets for sigmoids end at 1. Networks that do not pool their last features into a linear layer, such as transformers
with a class token, are looked at with Grad-CAM, which is the same map where they do. BatchNorm uses the statistics of
the batch for the maps, like the authors' code, which also lets this pass change the running statistics; here it does
not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from wsol.mix import MIXES
from wsol.mix._blend import blend
from wsol.mix._boxes import Box, area
from wsol.mix.base import Context, Draws, Family, Mixed, MixStrategy, Partner, check_labels, check_options, draw_partner
from wsol.mix.cutmix import cut_box

if TYPE_CHECKING:
    from torch import Tensor

    from wsol.models.classifier import Classifier


@MIXES.register("snapmix")
@dataclass(frozen=True, kw_only=True)
class SnapMix(MixStrategy):
    """A resized box of another image, labels by class activation maps."""

    family: ClassVar[Family] = "cut"
    paper: ClassVar[str] = "Huang et al., AAAI 2021"
    cost: ClassVar[str] = "1 fwd"
    keeps_label_mass: ClassVar[bool] = False

    alpha: float = 5.0
    """lambda ~ Beta(alpha, alpha) for both boxes; 5.0 for fine-tuning on CUB, 0.5 from scratch."""
    prob: float = 1.0
    """Probability of mixing a batch."""
    partner: Partner = "perm"
    """perm: a random permutation of the batch; flip: the batch in reverse."""

    def __post_init__(self) -> None:
        check_options("snapmix", alpha=self.alpha, prob=self.prob)

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `lam` and `centre` of the own box, `lam_partner` and `centre_partner` of the other, and `partner`."""
        mixes = generator.random() < self.prob
        lam, lam_partner = generator.beta(self.alpha, self.alpha, 2).tolist()
        centres = generator.integers(x.shape[2:], size=(2, 2)).tolist()
        return {
            "lam": lam if mixes else 1.0,
            "lam_partner": lam_partner,
            "centre": tuple(centres[0]),
            "centre_partner": tuple(centres[1]),
            "partner": draw_partner(len(x), generator, partner=self.partner),
        }

    def check(self, classifier: Classifier) -> None:
        """Refuse models without class activation maps."""
        from wsol.mix._providers import check_class_maps

        check_class_maps(classifier)

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Look at the clean images, then paste and weigh; see `MixStrategy.mix`."""
        import torch

        from wsol.mix._providers import class_maps, require

        context = require(context, name="snapmix")
        check_labels(y)
        size, partner = (x.shape[2], x.shape[3]), draws["partner"]
        own = cut_box(size, draws["lam"], draws["centre"])
        other = cut_box(size, draws["lam_partner"], draws["centre_partner"])
        if not area(own) or not area(other):
            return blend(x, y, y.new_ones((1, 1, 1, 1)), partner)
        classes, labels = positive_classes(y)
        maps = class_maps(context, x, classes, batch_stats=True)
        labels = labels & (maps.amax((2, 3)) > maps.amin((2, 3)))  # a flat map says nothing: by area
        shares = torch.stack([inside(percent_map(maps[:, k], size), own, other) for k in range(maps.shape[1])], 1)
        result = paste(x, y, own, other, partner)
        covered = area(own) / (size[0] * size[1])
        targets = weigh(y, classes, labels, shares.to(y), partner, covered=covered)
        return replace(result, targets=targets.clamp_max(1.0) if context.multi_label else targets)


def paste(x: Tensor, y: Tensor, own: Box, other: Box, partner: NDArray[np.int64]) -> Mixed:
    """Resize a box of each partner into a box of each image; labels by area."""
    from torch.nn import functional

    (top, left, bottom, right), (top2, left2, bottom2, right2) = own, other
    patch, shape = x[partner, :, top2:bottom2, left2:right2], (bottom - top, right - left)
    pasted, mask = x.clone(), y.new_ones((1, 1, *x.shape[2:]))
    pasted[:, :, top:bottom, left:right] = functional.interpolate(
        patch, size=shape, mode="bilinear", align_corners=True
    )
    mask[:, :, top:bottom, left:right] = 0.0
    return blend(x, y, mask, partner, other=pasted)


def weigh(
    y: Tensor, classes: Tensor, labels: Tensor, shares: Tensor, partner: NDArray[np.int64], *, covered: float
) -> Tensor:
    """Return targets (B, K).

    Args:
        y: Float (B, K).
        classes: int64 (B, K'), see `positive_classes`.
        labels: bool (B, K'), see `positive_classes`.
        shares: (B, K', 2), how much of each class lies in the own box and in the one taken from the image.
        partner: int64 (B,).
        covered: Share of the own box in the image, for what is no label.
    """
    own, given, positive = y.new_full(y.shape, 1.0 - covered), y.new_full(y.shape, covered), labels.new_zeros(y.shape)
    rows, at = labels.nonzero()[:, 0], classes[labels]
    own[rows, at], given[rows, at], positive[rows, at] = 1.0 - shares[labels][:, 0], shares[labels][:, 1], True
    taken = given[partner]
    same, both = positive & positive[partner], own + taken
    return y * both.where(same, own) + y[partner] * both.where(same, taken)


def percent_map(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge maps (B, h, w) to a size, and let each start at 0 and sum to 1: the semantic percent map."""
    from torch.nn import functional

    large = functional.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    large = large - large.amin((1, 2), keepdim=True)
    return large / (large.sum((1, 2), keepdim=True) + 1e-8)


def positive_classes(y: Tensor) -> tuple[Tensor, Tensor]:
    """Find the labels of each image, smoothed or not; see `_tokens.present`.

    Args:
        y: Float (B, K).

    Returns:
        int64 (B, K') classes, K' the most that an image has and at least 1, and bool (B, K') which of them are labels.
    """
    from wsol.mix._tokens import present

    labels = present(y) > 0
    most = max(int(labels.sum(1).max()), 1)
    order = labels.to(y.dtype).topk(most, dim=1).indices
    return order, labels.gather(1, order)


def inside(maps: Tensor, own: Box, other: Box) -> Tensor:
    """Return the sums (B, 2) of maps (B, H, W) in two boxes."""
    import torch

    return torch.stack([maps[:, top:bottom, left:right].sum((1, 2)) for top, left, bottom, right in (own, other)], 1)
