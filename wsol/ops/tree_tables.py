"""What the eight neighbours of a pixel decide, tabulated over the 256 sets of neighbours that come before it.

Pixels are ordered by descending level, equal levels in raster order. When the threshold falls past the level of a
pixel p, the neighbours that come before p in this order stand already. Their set, one bit each, tells all that p
changes: whether it starts a component, joins several, can widen a bounding box, and by how much it grows the area
inside the outline. (The upper link of discrete Morse theory; Carr, Snoeyink, Axen, "Computing Contour Trees in All
Dimensions", Computational Geometry 2003, use it for meshes.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Bit k stands for the neighbour at (row, column) offset OFFSETS[k]; the first four come earlier in raster order.
OFFSETS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
NONE = 8
WEST, EAST = 1 << 3, 1 << 4
_Table = NDArray[np.uint8]
_PREFERENCE = (3, 4, 1, 6, 0, 2, 5, 7)


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """Tables over the sets of earlier neighbours, all uint8 (256,).

    Attributes:
        step: Number of an earlier neighbour that p is connected to, the way up; NONE where p starts a component.
        joins: One neighbour of each component around p, as bits; 0 where there are fewer than two.
        event: 1 where p starts or joins components, or may move a side of the bounding box.
        area: How many half pixels p adds to the area inside the outline (8-connected tables only).
    """

    step: _Table
    joins: _Table
    event: _Table
    area: _Table


def _tables(connectivity: Literal[4, 8]) -> Tables:
    joined = range(8) if connectivity == 8 else (1, 3, 4, 6)
    step, joins, event, area = (np.zeros(256, dtype=np.uint8) for _ in range(4))
    for mask in range(256):
        earlier = {k for k in range(8) if mask >> k & 1}
        reachable = [k for k in _PREFERENCE if k in earlier and k in joined]
        step[mask] = reachable[0] if reachable else NONE
        groups = _components(earlier, connectivity)
        leaders = [next(k for k in reachable if k in group) for group in groups if group & set(reachable)]
        joins[mask] = sum(1 << k for k in leaders) if len(leaders) > 1 else 0
        event[mask] = joins[mask] > 0 or _may_widen({OFFSETS[k] for k in reachable})
        area[mask] = sum(_stands(mask, row, column) >= 2 for row in (-1, 1) for column in (-1, 1))
    return Tables(step, joins, event, area)


def _components(places: set[int], connectivity: int) -> list[set[int]]:
    """Split neighbours into the components that they form without p."""
    groups: list[set[int]] = []
    for k in sorted(places):
        near = [group for group in groups if any(_touch(k, other, connectivity) for other in group)]
        groups = [group for group in groups if group not in near] + [{k}.union(*near)]
    return groups


def _touch(first: int, second: int, connectivity: int) -> bool:
    rows, columns = (abs(a - b) for a, b in zip(OFFSETS[first], OFFSETS[second], strict=True))
    return max(rows, columns) == 1 if connectivity == 8 else rows + columns == 1


def _may_widen(earlier: set[tuple[int, int]]) -> bool:
    """Tell whether no connected earlier neighbour reaches as far left, right, up or down as p."""
    sides = (
        all(column > 0 for _, column in earlier),
        all(column < 0 for _, column in earlier),
        all(row > 0 for row, _ in earlier),
        all(row < 0 for row, _ in earlier),
    )
    return any(sides)


def _stands(mask: int, row: int, column: int) -> int:
    """Count the earlier pixels among the other three of the 2x2 window towards a corner."""
    return sum(mask >> OFFSETS.index(place) & 1 for place in ((row, column), (row, 0), (0, column)))


FOREGROUND = _tables(8)
BACKGROUND = _tables(4)
