"""TokenMix: replace about half of the tokens, in many blocks, and weigh the labels by maps of the clean images.

Liu, Liu, Zhou, Li, Liu, "TokenMix: Rethinking Image Mixing for Data Augmentation in Vision Transformers",
ECCV 2022, https://arxiv.org/abs/2207.08409. Blocks of random area and aspect are set until half of the cells and a 14th
(112 of 14 x 14) come from the partner, one mask a batch. With maps A that sum to 1 for each class of an image, the
label of class k is a - 1/2 + y/2 for the own image, a = sum of A over its cells, and likewise for the partner (y:
smoothed label). As in the authors' code a and b of the two images need not sum to 1.

The maps come from a teacher (`wsol cam` on the training images) or from the attention of the network itself, on the
clean images in evaluation mode. A class without a map counts by area.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from wsol.errors import ConfigError
from wsol.mix import MIXES
from wsol.mix.base import Context, Draws, Family, Mixed, MixStrategy, Need, Partner, check_labels, draw_partner

if TYPE_CHECKING:
    from torch import Tensor

    from wsol.models.classifier import Classifier

_TRIES = 10  # attempts to place one block
_LOG_ASPECT = math.log(1 / 0.3)


@MIXES.register("tokenmix")
@dataclass(frozen=True)
class TokenMix(MixStrategy):
    """Blocks of tokens of another image, with labels by maps."""

    family: ClassVar[Family] = "attention"
    paper: ClassVar[str] = "Liu et al., ECCV 2022"
    cost: ClassVar[str] = "1 fwd with maps: attention"
    keeps_label_mass: ClassVar[bool] = False

    maps: Literal["teacher", "attention"] = "attention"
    """attention: of the network in training to each clean image; teacher: stored score maps of the images."""
    mask: Literal["block", "random"] = "block"
    """block: rectangles of cells; random: single cells."""
    partner: Partner = "flip"
    """perm: a random permutation of the batch; flip: the batch in reverse, as the authors do."""

    def wants(self) -> frozenset[Need]:
        """Return "label_maps" for maps of a teacher."""
        return frozenset({"label_maps"}) if self.maps == "teacher" else frozenset()

    def check(self, classifier: Classifier) -> None:
        """Refuse models without attention between all patches, where that is asked for."""
        from wsol.mix._tokens import check_attention

        if self.maps == "attention":
            check_attention(classifier)

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `blocks` (float64 (1024, 4) in [0, 1)) or, for single cells, `cells` (float64 (H W / 16)); `partner`.

        A block takes one row after the other: area, aspect, top and left, each as a position in its range.
        """
        partner = draw_partner(len(x), generator, partner=self.partner)
        if self.mask == "random":
            return {"cells": generator.random(max(1, x.shape[2] * x.shape[3] // 16)), "partner": partner}
        return {"blocks": generator.random((1024, 4)), "partner": partner}

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Replace the cells and weigh the labels; see `MixStrategy.mix`."""
        import torch

        from wsol.mix._providers import require
        from wsol.mix._tokens import cell_grid, clean_attention, present, to_pixels

        check_labels(y)
        context, partner = require(context, name="tokenmix"), draws["partner"]
        size = (x.shape[2], x.shape[3])
        grid = cell_grid(context.classifier, size)
        pasted = random_cells(draws["cells"], grid) if self.mask == "random" else block_cells(draws["blocks"], grid)
        own_cells = (~torch.from_numpy(pasted)).to(y)
        mask = to_pixels(own_cells, size).expand(len(x), 1, *size)
        if self.maps == "teacher":
            maps = _teacher_maps(context, grid)
        else:
            given = clean_attention(context, x, rows="output")[1]
            maps = given.reshape(len(x), 1, *grid).to(y)
        shares = class_shares(maps, torch.stack([own_cells, 1 - own_cells]))
        y_partner = y[partner]
        own, other = shares[0], shares[1][partner]
        targets = (y + y_partner) / 2 + (own - 0.5) * present(y) + (other - 0.5) * present(y_partner)
        return Mixed(
            images=torch.where(mask.bool(), x, x[partner]),
            targets=targets,
            y_own=y,
            y_partner=y_partner,
            partner=partner,
            own_weight=mask.mean((1, 2, 3)),
            own_mask=mask,
        )


def class_shares(maps: Tensor, cells: Tensor) -> Tensor:
    """Return which share of each map lies in some cells.

    Args:
        maps: (B, K, rows, columns), not negative; K may be 1 for all classes.
        cells: (S, rows, columns), sets of cells as 0 and 1.

    Returns:
        (S, B, K); the share of the cells where a map is 0 everywhere.
    """
    import torch

    total = maps.sum((2, 3))
    inside = torch.einsum("bkhw,shw->sbk", maps, cells)
    return torch.where(total > 0, inside / total.clamp_min(1e-12), cells.mean((1, 2))[:, None, None])


def block_cells(blocks: NDArray[np.float64], grid: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the cells that drawn blocks cover.

    Args:
        blocks: (D, 4), rows of (area, aspect, top, left) as positions in [0, 1) of their ranges: [1, cells to go],
            [log 0.3, -log 0.3], and what the grid leaves.
        grid: (rows, columns).

    Returns:
        Bool (rows, columns). As many as `target_count` says; fewer when ten blocks in a row, or all, do not fit.
    """
    mask, to_go, failed = np.zeros(grid, dtype=bool), target_count(grid), 0
    for area_at, aspect_at, top_at, left_at in blocks.tolist():
        if not to_go or failed == _TRIES:
            break
        failed += 1
        area, aspect = 1 + area_at * (to_go - 1), math.exp((2 * aspect_at - 1) * _LOG_ASPECT)
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= grid[0] or width >= grid[1]:
            continue
        top, left = int(top_at * (grid[0] - height + 1)), int(left_at * (grid[1] - width + 1))
        block = mask[top : top + height, left : left + width]
        fresh = block.size - int(block.sum())
        if 0 < fresh <= to_go:
            block[:] = True
            to_go, failed = to_go - fresh, 0
    return mask


def random_cells(positions: NDArray[np.float64], grid: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the `target_count` cells with the lowest of the drawn positions, bool (rows, columns).

    Raises:
        ConfigError: When the grid has more cells than numbers were drawn.
    """
    count = grid[0] * grid[1]
    if count > len(positions):
        raise ConfigError("random cells of less than 4 pixels a side", where="mix 'tokenmix'", hint="mask: block")
    mask = np.zeros(count, dtype=bool)
    mask[np.argsort(positions[:count], kind="stable")[: target_count(grid)]] = True
    return mask.reshape(grid)


def target_count(grid: tuple[int, int]) -> int:
    """Return how many cells of a grid come from the partner: half and a 14th, 112 of 14 x 14."""
    count = grid[0] * grid[1]
    return min(count, count // 2 + count // 14)


def _teacher_maps(context: Context, grid: tuple[int, int]) -> Tensor:
    import torch.nn.functional as F

    if context.label_maps is None:
        hint = "give the store of `wsol cam` on the training images, or maps: attention"
        raise ConfigError("maps of a teacher are not there", where="mix 'tokenmix'", hint=hint)
    return F.adaptive_avg_pool2d(context.label_maps, grid).clamp_min(0)
