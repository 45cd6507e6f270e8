"""The component tree of a grey-level map, by basins: all thresholds at once, in time nearly linear in the pixels.

A plane is uint8 with a border of zeros; a pixel stands at threshold t when its level is greater than t. Pixels are
ordered by descending level, equal levels in raster order; `tree_tables` says what follows from which of its eight
neighbours come before a pixel.

1. `earlier_neighbours` compares each pixel with its neighbours: one byte of bits, vectorised by the compiler.
2. `label_basins` cuts each row into runs that rise to one peak and fall again. From the peak of a run a step leads to
   an earlier pixel in another run, and so on up to a pixel without earlier neighbours: its basin. What stands of a
   basin is connected at every threshold, so components are unions of basins (Kruskal's algorithm on some dozens of
   basins instead of all pixels). It also lists the events: the few pixels that join basins or may move a side of a
   bounding box.
3. `follow_boxes` and `follow_largest` lower the threshold, unite basins, and record what changes.

All kernels live in this one file because numba's cache does not see changes of callees in other files.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsol.ops.jit import kernel
from wsol.ops.tree_tables import EAST, FOREGROUND, WEST

Plane = NDArray[np.uint8]
Ints = NDArray[np.int32]
MAX_SIDE = (1 << 15) - 4  # an event holds its row and its column in 16 bits each
_OUTSIDE = 0
_TABULATED_BASINS = 1024  # more would make the table of areas by basin and level larger than the cache
_JOINS, _AREA = FOREGROUND.joins, FOREGROUND.area


class Basins(NamedTuple):
    """How a plane falls into basins.

    Attributes:
        runs: int32 (h, w), the run of each pixel; undefined where the plane is zero.
        of_run: int32 (runs,), the basin of each run, numbered by the first run in raster order.
        total: Number of basins.
        events: int32 (events,), row * 65536 + column in raster order.
    """

    runs: Ints
    of_run: Ints
    total: int
    events: Ints


@kernel
def foreground(levels: Plane) -> Any:
    """Return the plane of a map uint8 (H, W), one pixel wider on each side."""
    h, w = levels.shape
    plane = np.zeros((h + 2, w + 2), np.uint8)
    for y in range(h):
        row, source = plane[y + 1, 1:], levels[y]
        for x in range(w):
            row[x] = source[x]
    return plane


@kernel
def background(levels: Plane) -> Any:
    """Return the plane of a map turned upside down, with a ring that always stands: the outside, basin 0.

    Two pixels wider on each side. What lies at or below t stands in the plane at threshold 254 - t.
    """
    h, w = levels.shape
    plane = np.zeros((h + 4, w + 4), np.uint8)
    plane[1:-1, 1:-1] = 255
    for y in range(h):
        row, source = plane[y + 2, 2:], levels[y]
        for x in range(w):
            row[x] = 255 - source[x]
    return plane


@kernel
def fill_basins(levels: Plane, basins: Basins, unions: Ints) -> Any:
    """Raise each pixel of a map uint8 (H, W) to the level at which its basin drains to the outside.

    Args:
        levels: uint8 (H, W).
        basins: Basins of its background plane.
        unions: Their unions, from `follow_boxes`.
    """
    runs, of_run, count, _ = basins
    drain = np.zeros(count, np.int64)  # a level of the upturned plane; 0 where the basin never drains
    drain[_OUTSIDE] = 255
    for at in range(len(unions) - 1, -1, -1):
        drain[unions[at, 0]] = min(np.int64(unions[at, 2]), drain[unions[at, 1]])
    rim = np.empty(len(of_run), np.uint8)
    for run in range(len(of_run)):
        rim[run] = 255 - drain[of_run[run]]
    out = np.empty_like(levels)
    for y in range(levels.shape[0]):
        row, target, labels = levels[y], out[y], runs[y + 2, 2:]
        for x in range(len(row)):  # pixels of level 255 are never background and have no run
            target[x] = max(row[x], rim[labels[x]]) if row[x] < 255 else np.uint8(255)
    return out


@kernel
def earlier_neighbours(plane: Plane) -> Plane:
    """Return the set of neighbours that come before each pixel, as bits in the order of `tree_tables.OFFSETS`."""
    h, w = plane.shape
    out = np.empty((h, w), np.uint8)
    for y in range(1, h - 1):
        above, here, below, row = plane[y - 1], plane[y], plane[y + 1], out[y, 1:]
        a0, a1, a2 = above, above[1:], above[2:]
        h0, h1, h2 = here, here[1:], here[2:]
        b0, b1, b2 = below, below[1:], below[2:]
        for x in range(w - 2):
            v = h1[x]
            bits = np.uint8(a0[x] >= v) | np.uint8(a1[x] >= v) << 1 | np.uint8(a2[x] >= v) << 2
            bits |= np.uint8(h0[x] >= v) << 3 | np.uint8(h2[x] > v) << 4
            bits |= np.uint8(b0[x] > v) << 5 | np.uint8(b1[x] > v) << 6 | np.uint8(b2[x] > v) << 7
            row[x] = bits
    return out


@kernel
def label_basins(plane: Plane, earlier: Plane, step: Plane, event: Plane) -> Basins:
    """Number the runs, find the basin of each, and list the events.

    Args:
        plane: uint8 (h, w) with a border of zeros.
        earlier: Sets of earlier neighbours.
        step: Table of the way up from the peak of a run.
        event: Table of the sets that matter.
    """
    h, w = plane.shape
    runs, ways = np.empty((h, w), np.int32), np.empty(h * (w // 2 + 1), np.int32)
    marked, events = np.empty(w, np.int32), np.empty(h * w, np.int32)
    mark = event.copy()
    for bits in range(256):
        mark[bits] |= bits & (WEST | EAST) == 0
    rows, columns = _offsets()
    run, kept = -1, 0
    for y in range(1, h - 1):
        sets, numbers, level = earlier[y], runs[y], plane[y]
        before, found = WEST, 0
        for x in range(1, w - 1):
            # A run starts at a pixel that does not fall from the left, unless the one before rises to it.
            bits = sets[x]
            run += (bits & WEST == 0) & (before & (WEST | EAST) != EAST)
            before = bits
            numbers[x] = run
            marked[found] = x
            found += mark[bits]
        for x in marked[:found]:
            bits = sets[x]
            if level[x] == 0:
                continue
            if bits & (WEST | EAST) == 0:
                way = step[bits]
                ways[numbers[x]] = (y + rows[way]) * w + x + columns[way]
            events[kept] = y << 16 | x
            kept += event[bits]
    flat = runs.reshape(-1)
    parents = np.empty(run + 1, np.int32)
    for at in range(run + 1):
        parents[at] = flat[ways[at]]
    basins, count = np.empty(run + 1, np.int32), 0
    for at in range(run + 1):
        if parents[at] == at:
            basins[at] = count
            count += 1
    for at in range(run + 1):
        basins[at] = basins[_find(parents, at)]
    return Basins(runs, basins, count, events[:kept])


@kernel
def _offsets() -> Any:
    """Return the row and column offsets of the eight neighbours in the order of `tree_tables`, and of the pixel."""
    return np.array([-1, -1, -1, 0, 0, 1, 1, 1, 0]), np.array([-1, 0, 1, -1, 1, -1, 0, 1, 0])


@kernel
def _find(parents: Ints, node: int) -> int:
    """Return the root of a node and halve the path to it."""
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = parents[node]
    return node


@kernel
def _sort_by_level(plane: Plane, events: Ints) -> Any:
    """Sort events by descending level; those of level v then stand in [starts[255 - v], starts[256 - v])."""
    starts = np.zeros(257, np.int64)
    for e in events:
        starts[256 - plane[e >> 16, e & 65535]] += 1
    for at in range(1, 257):
        starts[at] += starts[at - 1]
    place = starts.copy()
    out = np.empty(len(events), np.int32)
    for e in events:
        at = 255 - plane[e >> 16, e & 65535]
        out[place[at]] = e
        place[at] += 1
    return out, starts


@kernel
def _join_boxes(box: Ints, x0: int, y0: int, x1: int, y1: int) -> None:
    """Make a half-open box hold another one."""
    box[0], box[1] = min(box[0], x0), min(box[1], y0)
    box[2], box[3] = max(box[2], x1), max(box[3], y1)


@kernel
def follow_boxes(plane: Plane, earlier: Plane, basins: Basins, joins: Plane, has_outside: bool) -> Any:
    """Follow the bounding box of every component down all thresholds.

    Args:
        plane: uint8 (h, w) with a border of zeros.
        earlier: Sets of earlier neighbours.
        basins: Its basins.
        joins: Table of the neighbours to unite.
        has_outside: Whether basin 0 is the surroundings of the image, which is no component.

    Returns:
        boxes: int32 (n, 4) half-open xyxy in the plane.
        spans: int32 (n, 2), the first and the last threshold at which a component has that box.
        unions: int32 (m, 3), (basin swallowed, basin that stays, level of the joining pixel) in order.
    """
    runs, of_run, count, events = basins
    rows, columns = _offsets()
    if has_outside:
        kept, own = 0, np.empty(len(events), np.int32)
        for e in events:
            y, x = e >> 16, e & 65535
            own[kept] = e
            kept += (of_run[runs[y, x]] != _OUTSIDE) | (joins[earlier[y, x]] != 0)
        events = own[:kept]
    order, starts = _sort_by_level(plane, events)
    parents = np.arange(count).astype(np.int32)
    box, known = np.empty((count, 4), np.int32), np.empty((count, 4), np.int32)
    box[:, :2], box[:, 2:] = 1 << 16, 0
    since, stamp = np.full(count, -1, np.int32), np.zeros(count, np.int32)
    touched = np.empty(count, np.int32)
    capacity = len(events) + 2 * count  # a row ends at an event, at a union, or at threshold 0
    boxes, spans, n = np.empty((capacity, 4), np.int32), np.empty((capacity, 2), np.int32), 0
    unions, joined = np.empty((count, 3), np.int32), 0
    for level in range(255, 0, -1):
        changed = 0
        for e in order[starts[255 - level] : starts[256 - level]]:
            y, x = e >> 16, e & 65535
            root = _find(parents, of_run[runs[y, x]])
            _join_boxes(box[root], x, y, x + 1, y + 1)
            if stamp[root] != level:
                stamp[root] = level
                touched[changed] = root
                changed += 1
            bits = joins[earlier[y, x]]
            for k in range(8 if bits else 0):
                if bits >> k & 1 == 0:
                    continue
                other = _find(parents, of_run[runs[y + rows[k], x + columns[k]]])
                if other == root:
                    continue
                if has_outside and other == _OUTSIDE:
                    root, other = other, root
                for node in (root, other):
                    if stamp[node] != level:
                        stamp[node] = level
                        touched[changed] = node
                        changed += 1
                parents[other] = root
                _join_boxes(box[root], box[other, 0], box[other, 1], box[other, 2], box[other, 3])
                unions[joined, 0], unions[joined, 1], unions[joined, 2] = other, root, level
                joined += 1
        # All pixels of this level stand now: that is threshold level - 1.
        for root in touched[:changed]:
            if has_outside and root == _OUTSIDE:
                continue
            stands = parents[root] == root
            same = stands and since[root] >= 0
            for side in range(4):
                same = same and box[root, side] == known[root, side]
            if same:
                continue
            if since[root] >= 0:
                boxes[n], spans[n, 0], spans[n, 1] = known[root], level, since[root]
                n += 1
            if stands:
                known[root] = box[root]
                since[root] = level - 1
    for root in range(count):
        if since[root] >= 0 and parents[root] == root:
            boxes[n], spans[n, 0], spans[n, 1] = known[root], 0, since[root]
            n += 1
    return boxes[:n], spans[:n], unions[:joined]


@kernel
def follow_largest(plane: Plane, earlier: Plane, basins: Basins) -> Any:
    """Follow the component whose outline encloses the largest area down all thresholds.

    Args:
        plane: uint8 (h, w) with a border of zeros, without holes at any threshold.
        earlier: Sets of earlier neighbours.
        basins: Its basins.

    Returns:
        int32 (256, 4), for each threshold the half-open xyxy box of the component in the map inside the border, zeros
        where nothing stands. Of equal areas the component wins whose first pixel in raster order is the last.
    """
    runs, of_run, count, events = basins
    rows, columns = _offsets()
    tabulated = count <= _TABULATED_BASINS
    areas = _tabulate_areas(plane, earlier, basins) if tabulated else np.zeros((1, 256), np.int32)
    order, starts = _sort_by_level(plane, events if tabulated else _all_standing(plane))
    parents = np.arange(count).astype(np.int32)
    box = np.empty((count, 4), np.int32)
    box[:, :2], box[:, 2:] = 1 << 16, 0
    size, standing = np.zeros(count, np.int64), np.empty(count, np.int32)
    alive = 0
    out = np.zeros((256, 4), np.int32)
    for level in range(255, 0, -1):
        for e in order[starts[255 - level] : starts[256 - level]]:
            y, x = e >> 16, e & 65535
            root = _find(parents, of_run[runs[y, x]])
            if box[root, 2] == 0:
                standing[alive] = root
                alive += 1
            _join_boxes(box[root], x, y, x + 1, y + 1)
            if not tabulated:
                size[root] += _AREA[earlier[y, x]]
            bits = _JOINS[earlier[y, x]]
            for k in range(8 if bits else 0):
                if bits >> k & 1 == 0:
                    continue
                other = _find(parents, of_run[runs[y + rows[k], x + columns[k]]])
                if other == root:
                    continue
                parents[other] = root
                _join_boxes(box[root], box[other, 0], box[other, 1], box[other, 2], box[other, 3])
                size[root] += size[other]
                if tabulated:
                    ours, theirs = areas[root], areas[other]
                    for v in range(level + 1):
                        ours[v] += theirs[v]
        best, kept = -1, 0
        for root in standing[:alive]:
            if parents[root] == root:
                standing[kept] = root
                kept += 1
                if tabulated:
                    size[root] += areas[root, level]
                if best < 0 or size[root] > size[best]:
                    best = root
                elif size[root] == size[best]:
                    first = _first_pixel(plane, basins, parents, root, box[root], level)
                    if first > _first_pixel(plane, basins, parents, best, box[best], level):
                        best = root
        alive = kept
        if best >= 0:
            for side in range(4):
                out[level - 1, side] = box[best, side] - 1
    return out


@kernel
def _first_pixel(plane: Plane, basins: Basins, parents: Ints, root: int, box: Ints, level: int) -> Any:
    """Return the first pixel of a component in raster order, in the form of an event."""
    y = box[1]
    for x in range(box[0], box[2]):
        if plane[y, x] >= level and _find(parents, basins.of_run[basins.runs[y, x]]) == root:
            return y << 16 | x
    return -1


@kernel
def _tabulate_areas(plane: Plane, earlier: Plane, basins: Basins) -> Any:
    """Return what the pixels of each basin and level add to the area inside the outline, int32 half pixels (n, 256)."""
    h, w = plane.shape
    table = np.zeros(basins.total * 256, np.int32)
    for y in range(1, h - 1):
        level, sets, numbers = plane[y], earlier[y], basins.runs[y]
        for x in range(1, w - 1):
            if level[x]:
                table[basins.of_run[numbers[x]] * 256 + level[x]] += _AREA[sets[x]]
    return table.reshape(basins.total, 256)


@kernel
def _all_standing(plane: Plane) -> Any:
    """Return every pixel that ever stands in the form of events."""
    h, w = plane.shape
    out, n = np.empty(h * w, np.int32), 0
    for y in range(1, h - 1):
        for x in range(1, w - 1):
            out[n] = y << 16 | x
            n += plane[y, x] > 0
    return out[:n]
