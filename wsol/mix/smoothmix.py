"""SmoothMix: blend in another image with a soft round spot.

Lee et al., "SmoothMix: A Simple Yet Effective Data Augmentation to Train Robust Classifiers", CVPR Workshops 2020.
The share of the partner at a pixel is a Gaussian around a uniform centre, of height 1 and a width sigma that is drawn
between a quarter and half of the image's sides; the label weight is the mean share. OpenMixup's code gives the two
labels each other's weight; here each image's label has the share of its own pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from wsol.errors import ConfigError
from wsol.mix import MIXES
from wsol.mix._blend import blend, tensor_like
from wsol.mix._boxes import check_share
from wsol.mix.base import Context, Draws, Family, Mixed, MixStrategy, Partner, draw_partner

if TYPE_CHECKING:
    from torch import Tensor


@MIXES.register("smoothmix")
@dataclass(frozen=True)
class SmoothMix(MixStrategy):
    """A soft spot of another image."""

    family: ClassVar[Family] = "cut"
    paper: ClassVar[str] = "Lee et al., CVPR Workshops 2020"

    sigma: tuple[float, float] = (0.25, 0.5)
    """Standard deviation as a share of the image's sides, drawn uniformly."""
    prob: float = 1.0
    """Probability of mixing a batch."""
    partner: Partner = "perm"
    """perm: a random permutation of the batch; flip: the batch in reverse."""

    def __post_init__(self) -> None:
        check_share("smoothmix", "prob", self.prob)
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise ConfigError(f"sigma must be a range above 0, got {self.sigma}", where="smoothmix")

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `centre` (row, column; None where nothing is mixed), `sigma` (float) and `partner` (int64 (B,))."""
        mixes = generator.random() < self.prob
        centre = int(generator.integers(x.shape[2])), int(generator.integers(x.shape[3]))
        return {
            "centre": centre if mixes else None,
            "sigma": float(generator.uniform(*self.sigma)),
            "partner": draw_partner(len(x), generator, partner=self.partner),
        }

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Blend in each partner; see `MixStrategy.mix`."""
        if draws["centre"] is None:
            return blend(x, y, y.new_ones((1, 1, *x.shape[2:])), draws["partner"])
        # The centre is the upper left corner of a pixel, hence the half.
        rows, columns = (
            np.exp(-(((np.arange(side) + 0.5 - centre) / (draws["sigma"] * side)) ** 2) / 2)
            for side, centre in zip(x.shape[2:], draws["centre"], strict=True)
        )
        return blend(x, y, tensor_like(1.0 - np.outer(rows, columns), y)[None, None], draws["partner"])
