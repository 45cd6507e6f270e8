"""CutMix: paste a box of another image and mix the labels by area.

Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019,
https://arxiv.org/abs/1905.04899. lambda ~ Beta(alpha, alpha); a box of sides sqrt(1 - lambda) times the image's, with
its centre uniform in the image, comes from the same place of the partner; the label weight is the area that is left
after clipping the box at the border. One box and one lambda a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from wsol.mix import MIXES
from wsol.mix.base import Context, Draws, Mixed, MixStrategy, Partner, check_options, draw_partner

if TYPE_CHECKING:
    from torch import Tensor

BoxRule = Literal["clovaai", "timm"]


@MIXES.register("cutmix")
@dataclass(frozen=True)
class CutMix(MixStrategy):
    """A box of another image."""

    alpha: float = 1.0
    """lambda ~ Beta(alpha, alpha)."""
    prob: float = 1.0
    """Probability of mixing a batch: 1.0 on ImageNet and CUB, 0.5 on CIFAR."""
    partner: Partner = "perm"
    """perm: a random permutation of the batch; flip: the batch in reverse, as timm does."""
    box: BoxRule = "clovaai"
    """clovaai: both halves of a side rounded down (the paper's code); timm: odd sides kept."""

    def __post_init__(self) -> None:
        check_options("cutmix", alpha=self.alpha, prob=self.prob)

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `lam` (float, before clipping), `centre` ((row, column)) and `partner` (int64 (B,))."""
        mixes = generator.random() < self.prob
        lam = float(generator.beta(self.alpha, self.alpha))
        centre = int(generator.integers(x.shape[2])), int(generator.integers(x.shape[3]))
        return {
            "lam": lam if mixes else 1.0,
            "centre": centre,
            "partner": draw_partner(len(x), generator, partner=self.partner),
        }

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Paste the box of each partner; see `MixStrategy.mix`."""
        partner, size = draws["partner"], (x.shape[2], x.shape[3])
        top, left, bottom, right = cut_box(size, draws["lam"], draws["centre"], rule=self.box)
        images = x.clone()
        images[:, :, top:bottom, left:right] = x[partner, :, top:bottom, left:right]
        mask = y.new_ones((1, 1, *size))
        mask[:, :, top:bottom, left:right] = 0.0
        weight = 1.0 - (bottom - top) * (right - left) / (size[0] * size[1])
        y_partner = y[partner]
        return Mixed(
            images=images,
            targets=y * weight + y_partner * (1.0 - weight),
            y_own=y,
            y_partner=y_partner,
            partner=partner,
            own_weight=y.new_full((len(x),), weight),
            own_mask=mask.expand(len(x), 1, *size),
        )


def cut_box(
    size: tuple[int, int], lam: float, centre: tuple[int, int], *, rule: BoxRule = "clovaai"
) -> tuple[int, int, int, int]:
    """Return the box to paste, clipped at the border.

    Args:
        size: (H, W) of the image.
        lam: Share of the own image before clipping, in [0, 1].
        centre: (row, column) of the box.
        rule: "clovaai": [c - cut // 2, c + cut // 2), so odd sides lose a pixel; "timm" (as of 1.0.31):
            [c - cut // 2, c + (cut + 1) // 2).

    Returns:
        top, left, bottom, right, half-open; empty when a side rounds down to nothing.
    """
    ratio, extra = math.sqrt(1.0 - lam), 1 if rule == "timm" else 0
    spans = []
    for length, middle in zip(size, centre, strict=True):
        cut = int(length * ratio)
        spans.append((max(middle - cut // 2, 0), min(middle + (cut + extra) // 2, length)))
    (top, bottom), (left, right) = spans
    return top, left, bottom, right
