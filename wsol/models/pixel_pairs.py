"""Affinities of near pixels: of their features (PSA), or of the boundaries between them (IRNet).

The pairs are those of `wsol.ops.random_walk.neighbour_offsets`: entry (k, y, x) belongs to the positions (y, x) and
(y, x) + offset k; where the second lies outside the grid, the affinity is 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Offsets = NDArray[np.int64]


def path_between(dy: int, dx: int) -> list[tuple[int, int]]:
    """Return the positions of the straight path from (0, 0) to (dy, dx), both ends included (IRNet).

    They are those of the bounding box of the two ends that lie nearer than 1 to the line through them.
    """
    rows = range(min(0, dy), max(0, dy) + 1)
    columns = range(min(0, dx), max(0, dx) + 1)
    limit = dy * dy + dx * dx
    return [(y, x) for y in rows for x in columns if (dy * x - dx * y) ** 2 < limit]


def shifted(values: Tensor, offsets: Offsets, *, fill: float) -> Iterator[Tensor]:
    """Yield for each offset the values at the second position of its pairs.

    Args:
        values: (B, D, h, w).
        offsets: int (n, 2) of (dy, dx) with dy >= 0.
        fill: Value outside the grid.

    Yields:
        (B, D, h, w), a view: position (y, x) holds the value at (y + dy, x + dx).
    """
    height, width = values.shape[2:]
    padded, side = _pad(values, offsets, fill)
    for dy, dx in offsets.tolist():
        yield padded[:, :, dy : dy + height, side + dx : side + dx + width]


def feature_affinity(features: Tensor, offsets: Offsets) -> Tensor:
    """Return exp(-mean over D of |f_i - f_j|), the affinity of PSA.

    Args:
        features: (B, D, h, w).
        offsets: int (n, 2).

    Returns:
        (B, n, h, w) in [0, 1]; 0 where the second position is outside.
    """
    inside = torch.stack([view[0, 0] for view in shifted(torch.ones_like(features[:1, :1]), offsets, fill=0.0)])
    near = [(view - features).abs().mean(dim=1) for view in shifted(features, offsets, fill=0.0)]
    return torch.exp(-torch.stack(near, dim=1)) * inside


def boundary_affinity(boundary: Tensor, offsets: Offsets) -> Tensor:
    """Return 1 - the highest boundary value on the straight path between two positions, the affinity of IRNet.

    Args:
        boundary: (B, 1, h, w) in [0, 1].
        offsets: int (n, 2).

    Returns:
        (B, n, h, w) in [0, 1]; 0 where the second position is outside.
    """
    height, width = boundary.shape[2:]
    padded, side = _pad(boundary, offsets, 1.0)
    highest = []
    for dy, dx in offsets.tolist():
        path = [padded[:, 0, y : y + height, side + x : side + x + width] for y, x in path_between(dy, dx)]
        highest.append(torch.stack(path).max(dim=0).values)
    return 1 - torch.stack(highest, dim=1)


def displacement_difference(field: Tensor, offsets: Offsets) -> Tensor:
    """Return field(i) - field(j) for every pair; 0 where the second position is outside.

    Two pixels whose displacements lead to one centroid differ by their offset.

    Args:
        field: (B, 2, h, w), (dy, dx) in grid positions.
        offsets: int (n, 2).

    Returns:
        (B, 2, n, h, w).
    """
    inside = shifted(torch.ones_like(field[:1, :1]), offsets, fill=0.0)
    pairs = zip(shifted(field, offsets, fill=0.0), inside, strict=True)
    return torch.stack([(field - view) * valid for view, valid in pairs], dim=2)


def _pad(values: Tensor, offsets: Offsets, fill: float) -> tuple[Tensor, int]:
    """Return the values with a margin on the left, right and bottom, and the width of that on the left."""
    bottom, side = int(offsets[:, 0].max()), int(np.abs(offsets[:, 1]).max())
    return F.pad(values, (side, side, 0, bottom), value=fill), side
