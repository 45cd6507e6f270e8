"""Moving image patches to where a mask shows them, at a cost for the distance (Puzzle Mix, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor


def distances(side: int, *, like: Tensor) -> Tensor:
    """Return squared distances between the cells of a square grid, (side², side²), in units of its diagonal step.

    Args:
        side: Cells along a side, at least 2.
        like: Gives dtype and device.
    """
    at = torch.arange(side, device=like.device, dtype=like.dtype)
    cells = torch.cartesian_prod(at, at)
    return (cells[:, None] - cells[None]).square().sum(-1) / (side - 1) ** 2


def transport_plan(mask: Tensor, saliency: Tensor, *, weight: float = 0.8) -> Tensor:
    """Assign patches to cells so that salient ones come to lie where the mask shows them.

    The cost of moving patch i to cell j is weight * distance - saliency_i where the mask is positive. In each of
    `side` rounds every patch takes its cheapest cell, of several patches the cheapest one gets it, and for the losers
    the cell becomes dearer by 1.

    Args:
        mask: (B, side, side), share of the image in each cell.
        saliency: (B, side, side), summing to 1.
        weight: Of the distance.

    Returns:
        (B, side², side²): 1 where patch i goes to cell j, at most one patch a cell and one cell a patch.
    """
    side = mask.shape[-1]
    shown = (mask > 0).flatten(1)[:, None].to(saliency.dtype)
    cost = weight * distances(side, like=saliency) - saliency.flatten(1)[:, :, None] * shown
    plan = torch.zeros_like(cost)
    for _ in range(side):
        taken = torch.zeros_like(cost).scatter_(2, cost.argmin(2, keepdim=True), 1.0)
        best = (taken * cost).argmin(1, keepdim=True)
        plan = torch.zeros_like(cost).scatter_(1, best, 1.0) * taken
        cost = cost + taken - plan
    return plan


def complete(plan: Tensor) -> Tensor:
    """Let cells that no patch goes to keep a copy of their own."""
    return plan + torch.diag_embed((plan.sum(1) == 0).to(plan))


def transport(x: Tensor, plan: Tensor) -> Tensor:
    """Move the patches of images; cells that no patch goes to become 0.

    Args:
        x: (B, C, side * h, side * w).
        plan: (B, side², side²), see `transport_plan`.
    """
    count, channels, height, width = x.shape
    side = round(plan.shape[1] ** 0.5)
    h, w = height // side, width // side
    patches = x.reshape(count, channels, side, h, side, w).permute(0, 2, 4, 1, 3, 5).reshape(count, side * side, -1)
    moved = plan.to(x.dtype).transpose(1, 2) @ patches
    return moved.reshape(count, side, side, channels, h, w).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)
