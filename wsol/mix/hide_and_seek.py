"""Hide-and-Seek: hide cells of a grid, so that a classifier has to look at all parts of an object.

Singh and Lee, "Hide-and-Seek: Forcing a Network to be Meticulous for Weakly-supervised Object and Action Localization",
ICCV 2017, https://arxiv.org/abs/1704.04232. Each image gets a grid of one of several cell sizes, and each cell is
hidden with the same probability and filled with the mean color. Labels stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from wsol.errors import ConfigError
from wsol.mix import MIXES
from wsol.mix._blend import delete
from wsol.mix._boxes import check_share
from wsol.mix.base import Context, Draws, Family, Mixed, MixStrategy

if TYPE_CHECKING:
    from torch import Tensor


@MIXES.register("hide_and_seek")
@dataclass(frozen=True)
class HideAndSeek(MixStrategy):
    """Hidden cells of a grid."""

    family: ClassVar[Family] = "delete"
    paper: ClassVar[str] = "Singh and Lee, ICCV 2017"

    cells: tuple[int, ...] = (0, 16, 32, 44, 56)
    """Sides of a cell in pixels, one drawn for each image; 0 hides nothing. These are for images of 224 pixels."""
    drop: float = 0.5
    """Probability of hiding a cell."""

    def __post_init__(self) -> None:
        check_share("hide_and_seek", "drop", self.drop)
        if not self.cells or min(self.cells) < 0:
            raise ConfigError(f"cells must be 0 or more pixels, got {self.cells}", where="hide_and_seek")

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `cell` (int64 (B,)), the side in pixels, and `hidden`, for each image bool (rows, columns) of cells."""
        cells = generator.choice(np.array(self.cells), size=len(x))
        grids = [(-(-x.shape[2] // cell), -(-x.shape[3] // cell)) if cell else (0, 0) for cell in cells.tolist()]
        return {"cell": cells, "hidden": [generator.random(grid) < self.drop for grid in grids]}

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Hide the cells; see `MixStrategy.mix` and `delete`."""
        height, width = x.shape[2:]
        hidden = np.zeros((len(x), height, width), dtype=bool)
        for image, cell, grid in zip(hidden, draws["cell"].tolist(), draws["hidden"], strict=True):
            if cell:
                image[:] = grid.repeat(cell, axis=0).repeat(cell, axis=1)[:height, :width]
        return delete(x, y, hidden)
