"""GridMix: paste a regular grid of small patches of another image.

After Baek et al., "GridMix: Strong Regularization through Local Context Mapping", Pattern Recognition 2021,
https://doi.org/10.1016/j.patcog.2020.107594, in the form of the GridMixup and OpenMixup code: inside a rectangle of
random area and aspect, square patches on a grid, of sides sqrt(1 - lambda) times a cell's, come from the same place of
the partner, and the label weight is the area that is left. The paper's own grid of random cells with a loss for each
cell is another thing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from wsol.errors import ConfigError
from wsol.mix import MIXES
from wsol.mix._blend import blend, tensor_like
from wsol.mix._boxes import check_range
from wsol.mix.base import Context, Draws, Family, Mixed, MixStrategy, Partner, check_options, draw_partner

if TYPE_CHECKING:
    from torch import Tensor


@MIXES.register("gridmix")
@dataclass(frozen=True)
class GridMix(MixStrategy):
    """A grid of patches of another image."""

    family: ClassVar[Family] = "cut"
    paper: ClassVar[str] = "Baek et al., Pattern Recognition 2021"

    alpha: float = 1.0
    """lambda ~ Beta(alpha, alpha)."""
    prob: float = 1.0
    """Probability of mixing a batch."""
    partner: Partner = "perm"
    """perm: a random permutation of the batch; flip: the batch in reverse."""
    cells: tuple[int, int] = (2, 6)
    """Cells along a row of the grid, drawn uniformly, both ends included."""
    area: tuple[float, float] = (0.5, 1.0)
    """Area of the rectangle as a share of the image's."""
    aspect: tuple[float, float] = (0.5, 2.0)
    """Height by width of the rectangle."""

    def __post_init__(self) -> None:
        check_options("gridmix", alpha=self.alpha, prob=self.prob)
        check_range("gridmix", "area", self.area, low=0, high=1)
        if not 1 <= self.cells[0] <= self.cells[1]:
            raise ConfigError(f"cells must be a range of 1 or more, got {self.cells}", where="gridmix")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ConfigError(f"aspect must be a range above 0, got {self.aspect}", where="gridmix")

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw floats `lam`, `area`, `aspect`, `place` (two in [0, 1), down and right), int `cells`, and `partner`."""
        mixes = generator.random() < self.prob
        lam = float(generator.beta(self.alpha, self.alpha))
        return {
            "lam": lam if mixes else 1.0,
            "cells": int(generator.integers(self.cells[0], self.cells[1] + 1)),
            "area": float(generator.uniform(*self.area)),
            "aspect": float(generator.uniform(*self.aspect)),
            "place": (float(generator.random()), float(generator.random())),
            "partner": draw_partner(len(x), generator, partner=self.partner),
        }

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Paste the patches of each partner; see `MixStrategy.mix`."""
        size = (x.shape[2], x.shape[3])
        pasted = np.zeros(size, dtype=bool)
        if draws["lam"] < 1.0:
            pasted = grid(
                size,
                draws["lam"],
                cells=draws["cells"],
                area=draws["area"],
                aspect=draws["aspect"],
                place=draws["place"],
            )
        return blend(x, y, tensor_like(~pasted, y)[None, None], draws["partner"])


def grid(
    size: tuple[int, int], lam: float, *, cells: int, area: float, aspect: float, place: tuple[float, float]
) -> NDArray[np.bool_]:
    """Return where the partner is pasted, bool (H, W).

    Args:
        size: (H, W).
        lam: Share of the own image in a cell, in [0, 1).
        cells: Cells along a row; fewer where a cell would be less than 2 pixels wide.
        area: Area of the rectangle as a share of the image's.
        aspect: Its height by its width. It may reach beyond the image; rows and columns below 0 then count from the
            opposite border, so that most patches that begin there are left out, as in OpenMixup's code.
        place: Where the rectangle lies between the two borders, (down, right) in [0, 1).
    """
    width = int(math.sqrt(int(size[0] * size[1] * area) / aspect))
    height = int(width * aspect)
    if not width or not height:
        return np.zeros(size, dtype=bool)
    cell = math.ceil(width / min(cells, max(width // 2, 1)))
    patch = min(max(int(cell * math.sqrt(1.0 - lam)), 1), cell - 1)
    corner = (int((side - extent) * share) for side, extent, share in zip(size, (height, width), place, strict=True))
    rows, columns = (
        _stripes(side, extent, start, cell, patch)
        for side, extent, start in zip(size, (height, width), corner, strict=True)
    )
    return np.outer(rows, columns)


def _stripes(side: int, extent: int, start: int, cell: int, patch: int) -> NDArray[np.bool_]:
    line = np.zeros(side, dtype=bool)
    for begin in range(start, start + extent, cell):
        line[begin : min(begin + patch, start + extent)] = True
    return line
