"""ResizeMix: paste the whole partner, made small.

Qin et al., "ResizeMix: Mixing Data with Preserved Object Information and True Labels", arXiv 2020,
https://arxiv.org/abs/2012.11101. The partner is resized (nearest pixel) into a box whose sides are a share of the
image's, drawn uniformly; the label weight is the area that is left after clipping the box at the border.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from wsol.mix import MIXES
from wsol.mix._blend import blend
from wsol.mix._boxes import area, check_range, check_share, clip_box
from wsol.mix.base import Context, Draws, Family, Mixed, MixStrategy, Partner, draw_partner

if TYPE_CHECKING:
    from torch import Tensor


@MIXES.register("resizemix")
@dataclass(frozen=True)
class ResizeMix(MixStrategy):
    """A small copy of another image; inside the box `own_mask` is 0, though its pixels are the whole partner."""

    family: ClassVar[Family] = "cut"
    paper: ClassVar[str] = "Qin et al., arXiv 2020"

    scale: tuple[float, float] = (0.1, 0.8)
    """Sides of the box as a share of the image's."""
    prob: float = 1.0
    """Probability of mixing a batch."""
    partner: Partner = "perm"
    """perm: a random permutation of the batch; flip: the batch in reverse."""

    def __post_init__(self) -> None:
        check_share("resizemix", "prob", self.prob)
        check_range("resizemix", "scale", self.scale, low=0, high=1)

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `scale` (float, 0 where nothing is mixed), `centre` (row, column) and `partner` (int64 (B,))."""
        mixes = generator.random() < self.prob
        scale = float(generator.uniform(*self.scale))
        centre = int(generator.integers(x.shape[2])), int(generator.integers(x.shape[3]))
        return {
            "scale": scale if mixes else 0.0,
            "centre": centre,
            "partner": draw_partner(len(x), generator, partner=self.partner),
        }

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Paste the small partners; see `MixStrategy.mix`."""
        from torch.nn.functional import interpolate

        size, partner = (x.shape[2], x.shape[3]), draws["partner"]
        sides = int(size[0] * draws["scale"]), int(size[1] * draws["scale"])
        box = clip_box(size, sides, draws["centre"])
        top, left, bottom, right = box
        mask, other = y.new_ones((1, 1, *size)), x
        if area(box):
            mask[:, :, top:bottom, left:right] = 0.0
            other = x.clone()
            other[:, :, top:bottom, left:right] = interpolate(x[partner], (bottom - top, right - left), mode="nearest")
        return blend(x, y, mask, partner, other=other)
