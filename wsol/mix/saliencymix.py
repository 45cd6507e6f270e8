"""SaliencyMix: CutMix with the box at the most salient pixel.

Uddin et al., "SaliencyMix: A Saliency Guided Data Augmentation Strategy for Better Regularization", ICLR 2021,
https://arxiv.org/abs/2006.01791. lambda ~ Beta(alpha, alpha); the box is centred at the maximum of the fine-grained
static saliency of one image, the partner of the first of the batch, and pasted at the same place in all, as the
authors' code does. That code hands OpenCV a float image, whose bytes OpenCV then reads as pixels; here the image is
first stretched to 8 bits. Saliency is computed on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from wsol.mix import MIXES
from wsol.mix._boxes import draw_lam
from wsol.mix.base import Context, Draws, Family, Mixed, MixStrategy, Partner, check_options, draw_partner
from wsol.mix.cutmix import cut_box, paste

if TYPE_CHECKING:
    from torch import Tensor


@MIXES.register("saliencymix")
@dataclass(frozen=True)
class SaliencyMix(MixStrategy):
    """A box of another image where that one is salient."""

    family: ClassVar[Family] = "cut"
    paper: ClassVar[str] = "Uddin et al., ICLR 2021"
    cost: ClassVar[str] = "saliency of one image on the CPU"

    alpha: float = 1.0
    """lambda ~ Beta(alpha, alpha)."""
    prob: float = 1.0
    """Probability of mixing a batch: 1.0 on ImageNet, 0.5 on CIFAR."""
    partner: Partner = "perm"
    """perm: a random permutation of the batch; flip: the batch in reverse."""

    def __post_init__(self) -> None:
        check_options("saliencymix", alpha=self.alpha, prob=self.prob)

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `lam` (float, before clipping) and `partner` (int64 (B,))."""
        lam = draw_lam(len(x), generator, alpha=self.alpha, prob=self.prob)
        return {"lam": lam, "partner": draw_partner(len(x), generator, partner=self.partner)}

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Paste the box of each partner; see `MixStrategy.mix`."""
        lam, partner, size = draws["lam"], draws["partner"], (x.shape[2], x.shape[3])
        centre = salient_pixel(x[int(partner[0])]) if lam < 1.0 else (0, 0)
        return paste(x, y, [cut_box(size, lam, centre)], partner)


def salient_pixel(image: Tensor) -> tuple[int, int]:
    """Return (row, column) of the most salient pixel of an image (3 or 1, H, W) of any range."""
    from wsol.mix._fine_grained import fine_grained_saliency

    pixels = image.detach().float().cpu().numpy().transpose(1, 2, 0)
    low, high = float(pixels.min()), float(pixels.max())
    stretched = ((pixels - low) * (255.0 / ((high - low) or 1.0))).astype(np.uint8)
    saliency = fine_grained_saliency(stretched if stretched.shape[2] == 3 else stretched[:, :, 0])
    row, column = divmod(int(saliency.argmax()), saliency.shape[1])
    return row, column
