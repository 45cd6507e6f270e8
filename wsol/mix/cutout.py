"""Cutout: hide a square of each image.

DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", arXiv 2017,
https://arxiv.org/abs/1708.04552. The centre of the square is uniform in the image, so that a part of it may lie
outside; the hole is filled with the mean color. Labels stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from wsol.errors import ConfigError
from wsol.mix import MIXES
from wsol.mix._blend import delete
from wsol.mix._boxes import check_share, clip_box
from wsol.mix.base import Context, Draws, Family, Mixed, MixStrategy

if TYPE_CHECKING:
    from torch import Tensor


@MIXES.register("cutout")
@dataclass(frozen=True)
class Cutout(MixStrategy):
    """A hidden square."""

    family: ClassVar[Family] = "delete"
    paper: ClassVar[str] = "DeVries and Taylor, arXiv 2017"

    length: float = 0.5
    """Side of the square as a share of the short side of the image: 0.5 for CIFAR-10 and, as others use it, ImageNet,
    0.25 for CIFAR-100."""
    holes: int = 1
    """Squares an image."""

    def __post_init__(self) -> None:
        check_share("cutout", "length", self.length)
        if self.holes < 1:
            raise ConfigError(f"holes must be 1 or more, got {self.holes}", where="cutout")

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `centre` (int64 (B, holes, 2)), row and column of each square."""
        return {"centre": generator.integers(np.array(x.shape[2:]), size=(len(x), self.holes, 2))}

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Hide the squares; see `MixStrategy.mix` and `delete`."""
        size = (x.shape[2], x.shape[3])
        side = round(min(size) * self.length)
        hidden = np.zeros((len(x), *size), dtype=bool)
        for image, centres in zip(hidden, draws["centre"].tolist(), strict=True):
            for row, column in centres:
                top, left, bottom, right = clip_box(size, (side, side), (row, column))
                image[top:bottom, left:right] = True
        return delete(x, y, hidden)
