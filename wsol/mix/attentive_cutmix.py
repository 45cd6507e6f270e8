"""Attentive CutMix: paste the cells that a network attends to most onto another image.

Walawalkar et al., "Attentive CutMix: An Enhanced Data Augmentation Approach for Deep Learning Based Image
Classification", ICASSP 2020, https://arxiv.org/abs/2003.13048. The cells of the last feature map with the highest mean
over channels are kept of each image, the rest is its partner; the label weight is the area that is kept. The paper
reads a second, pre-trained network; here it is the network in training, in evaluation mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from wsol.mix import MIXES
from wsol.mix._blend import blend
from wsol.mix._boxes import check_share
from wsol.mix.base import Context, Draws, Family, Mixed, MixStrategy, Partner, draw_partner

if TYPE_CHECKING:
    from torch import Tensor


@MIXES.register("attentive_cutmix")
@dataclass(frozen=True)
class AttentiveCutMix(MixStrategy):
    """The most attended cells on another image."""

    family: ClassVar[Family] = "cut"
    paper: ClassVar[str] = "Walawalkar et al., ICASSP 2020"
    cost: ClassVar[str] = "1 fwd"

    share: float = 6 / 49
    """Share of the cells that are kept, at least one: 6 of 7 x 7 in the paper."""
    prob: float = 1.0
    """Probability of mixing a batch."""
    partner: Partner = "perm"
    """perm: a random permutation of the batch; flip: the batch in reverse."""

    def __post_init__(self) -> None:
        check_share("attentive_cutmix", "share", self.share)
        check_share("attentive_cutmix", "prob", self.prob)

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `mixes` (bool) and `partner` (int64 (B,))."""
        mixes = bool(generator.random() < self.prob)
        return {"mixes": mixes, "partner": draw_partner(len(x), generator, partner=self.partner)}

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Put the attended cells onto each partner; see `MixStrategy.mix`.

        Raises:
            ConfigError: Without a context.
        """
        from wsol.mix._providers import clean_output, require

        size = (x.shape[2], x.shape[3])
        if not draws["mixes"]:
            return blend(x, y, y.new_ones((1, 1, *size)), draws["partner"])
        features, _ = clean_output(require(context, name="attentive_cutmix"), x)
        return blend(x, y, attended(features, size, share=self.share).to(y.dtype), draws["partner"])


def attended(features: Tensor, size: tuple[int, int], *, share: float) -> Tensor:
    """Return 1 at the cells with the highest mean over channels, 0 elsewhere, (B, 1, H, W).

    Args:
        features: (B, D, h, w).
        size: (H, W), reached by repeating the nearest cell.
        share: Share of the cells.
    """
    from torch.nn.functional import interpolate

    means = features.mean(1).flatten(1)
    count = max(1, round(share * means.shape[1]))
    cells = means.new_zeros(means.shape).scatter_(1, means.topk(count, dim=1).indices, 1.0)
    return interpolate(cells.reshape(len(features), 1, *features.shape[2:]), size, mode="nearest")
