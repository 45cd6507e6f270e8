"""GridMask: hide the squares of a rotated regular grid.

Chen et al., "GridMask Data Augmentation", arXiv 2020, https://arxiv.org/abs/2001.04086. The distance of the squares,
the place of the grid and its rotation are drawn for each image. The probability of hiding rises over the training.
Holes are filled with the mean color. Labels stay as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from wsol.errors import ConfigError
from wsol.mix import MIXES
from wsol.mix._blend import delete
from wsol.mix._boxes import check_range, check_share
from wsol.mix.base import Context, Draws, Family, Mixed, MixStrategy

if TYPE_CHECKING:
    from torch import Tensor


@MIXES.register("gridmask")
@dataclass(frozen=True)
class GridMask(MixStrategy):
    """Hidden squares on a regular grid."""

    family: ClassVar[Family] = "delete"
    paper: ClassVar[str] = "Chen et al., arXiv 2020"

    prob: float = 0.8
    """Probability for an image at the end of the rise."""
    rise: float = 0.8
    """Share of the training over which the probability rises from 0 in a line; 0: constant."""
    distance: tuple[float, float] = (96 / 224, 1.0)
    """Distance of two squares as a share of the short side of the image, drawn uniformly."""
    keep: float = 0.6
    """Share of the distance, in each direction, that lies between two squares."""
    rotate: int = 360
    """The grid is rotated by less than so many degrees."""

    def __post_init__(self) -> None:
        for option in ("prob", "rise", "keep"):
            check_share("gridmask", option, getattr(self, option))
        check_range("gridmask", "distance", self.distance, low=0, high=1)
        if self.rotate < 1:
            raise ConfigError(f"rotate must be 1 or more, got {self.rotate}", where="gridmask", hint="1: no rotation")

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw (B,) each: `u` in [0, 1), `distance` in pixels, `top` and `left` below it, `angle` in degrees."""
        side = min(x.shape[2:])
        low, high = (max(2, int(side * share)) for share in self.distance)
        distance = generator.integers(low, max(high, low + 1), size=len(x))
        return {
            "u": generator.random(len(x)),
            "distance": distance,
            "top": generator.integers(distance),
            "left": generator.integers(distance),
            "angle": generator.integers(self.rotate, size=len(x)),
        }

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Hide the squares; without a context with the probability at the end; see `MixStrategy.mix`, `delete`."""
        prob, size = self.prob, (x.shape[2], x.shape[3])
        if context is not None and self.rise > 0:
            prob *= min(1.0, context.epoch / (self.rise * context.epochs))
        hidden = np.zeros((len(x), *size), dtype=bool)
        for at in np.flatnonzero(draws["u"] < prob):
            offset = int(draws["top"][at]), int(draws["left"][at])
            hidden[at] = squares(
                size, int(draws["distance"][at]), offset, angle=int(draws["angle"][at]), keep=self.keep
            )
        return delete(x, y, hidden)


def squares(
    size: tuple[int, int], distance: int, offset: tuple[int, int], *, angle: int, keep: float
) -> NDArray[np.bool_]:
    """Return the hidden squares, bool (H, W).

    Args:
        size: (H, W).
        distance: Pixels from one square to the next.
        offset: (row, column) where a stripe that is kept begins, before the rotation.
        angle: Degrees, counter-clockwise.
        keep: Share of the distance between two squares.
    """
    from PIL import Image

    side = math.ceil(math.hypot(*size))
    between, at = math.ceil(distance * keep), np.arange(side)
    rows, columns = ((at - start) % distance >= between for start in offset)
    canvas = Image.fromarray(np.outer(rows, columns).astype(np.uint8))
    # What turns in from beyond the canvas would be kept, but the canvas is so large that none does.
    turned = np.asarray(canvas.rotate(angle)).astype(bool)
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    return turned[top : top + size[0], left : left + size[1]]
