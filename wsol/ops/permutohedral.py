"""The permutohedral lattice: Gaussian filtering in d dimensions in time linear in the number of points.

Adams, Baek, Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics 2010,
https://graphics.stanford.edu/papers/permutohedral/. A point is written as a mixture of the d + 1 corners of the
simplex that holds it (splat), the lattice is blurred along its d + 1 axes with [1/2, 1, 1/2], and the point reads
its mixture back (slice).

A lattice point has d + 1 integer coordinates with sum zero; the first d are stored as one int64, a linear form of
them, so that a step along an axis is the addition of a constant. The kernels run in one thread without the GIL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsol.errors import ConfigError
from wsol.ops.jit import kernel

_Floats = NDArray[np.float32]
_Ids = NDArray[np.uint32]
_Keys = NDArray[np.int64]

_NONE = np.uint32(0xFFFFFFFF)
_FIRST_BITS = 14
_TILE = 256
# The linear form of the coordinates is unique modulo 2^64 as long as their box has fewer points.
_MAX_BOX = 2.0**63


def lanes(count: int) -> tuple[int, ...] | NDArray[np.int8]:
    """Return a thing whose length is `count`, and is known to the compiler where that makes loops faster.

    Up to seven channels are unrolled (1.3 to 4 times faster), more are vectorised at run time.
    """
    return (0,) * count if count < 8 else np.zeros(count, np.int8)


@dataclass(frozen=True, slots=True, eq=False)
class Lattice:
    """Where N points lie in the lattice.

    Attributes:
        corners: uint32 (N, d + 1), the lattice points around each point, in [0, size).
        weights: float32 (N, d + 1), the share of each corner; rows sum to one as built.
        neighbours: uint32 (d + 1, size, 2), the lattice points on both sides along each axis; `size` for none.
    """

    corners: _Ids
    weights: _Floats
    neighbours: _Ids

    @property
    def size(self) -> int:
        """The number of lattice points."""
        return int(self.neighbours.shape[1])

    def filter(self, values: _Floats) -> _Floats:
        """Apply the filter: splat, blur, slice.

        Args:
            values: float32 (N, K).

        Returns:
            float32 (N, K), not normalised: the filter of ones is not one.
        """
        held = np.zeros((self.size + 1, values.shape[1]), np.float32)
        width = lanes(values.shape[1])
        _splat(self.corners, self.weights, values, held, width)
        blur(self.neighbours, held, np.zeros_like(held), width)
        return _slice(self.corners, self.weights, held, np.zeros_like(values), width)


def build_lattice(features: _Floats) -> Lattice:
    """Embed points whose features are measured in standard deviations of the Gaussian.

    Args:
        features: float32 (N, d), N >= 1, finite.

    Returns:
        The lattice of these points.

    Raises:
        ConfigError: When the points spread over too many standard deviations to number the lattice points.
    """
    count, dims = features.shape
    scale = axis_scales(dims)
    strides = key_strides(np.array([np.ptp(feature) for feature in features.T]) * scale)
    axes = (0,) * (dims + 1)

    weights, turns, origins = _locate(np.ascontiguousarray(features), scale.astype(np.float32), strides, axes)
    corners = np.empty((count, dims + 1), np.uint32)
    bits, done, size, last = _FIRST_BITS, 0, 0, np.empty(dims + 1, np.int64)
    keys, table = np.empty(0, np.int64), np.empty(0, np.uint32)
    while done < count:
        keys, table, bits = np.append(keys, np.empty((1 << bits) - len(keys), np.int64)), _table(bits + 1), bits + 1
        _enter(table, keys, size)
        done, size = _number(turns, origins, strides, axes, corners, table, keys, last, done, size)
    return Lattice(corners, weights, _link(table, keys[:size], strides))


def axis_scales(dims: int) -> NDArray[np.float64]:
    """Return the factor (d,) that brings each feature, in standard deviations, to the spacing of the lattice."""
    order = np.arange(1, dims + 1)
    # Rounded to float32 once in between, as the reference implementation does: coordinates are large.
    return np.asarray(float(np.float32(np.sqrt(2 / 3) * (dims + 1))) / np.sqrt(order * (order + 1)))


def key_strides(reach: NDArray[np.float64]) -> _Keys:
    """Return the linear form int64 (d + 1,) that numbers the lattice points of scaled features.

    Args:
        reach: Float (d,), largest minus smallest scaled feature.

    Raises:
        ConfigError: When the box of the coordinates has more points than an int64 can tell apart.
    """
    dims = len(reach)
    # Coordinate j is the sum of the scaled features from j on, minus j times the one before it.
    box = np.cumsum(reach[::-1])[::-1] + np.append(0, np.arange(1, dims + 1) * reach)[:-1]
    box = np.ceil(box) + 8 * (dims + 1)
    if not float(np.prod(box)) < _MAX_BOX:
        raise ConfigError("the standard deviations of the filter are too small for this image", hint="raise them")
    return np.append(np.append(1, np.cumprod(box[:-1])), 0).astype(np.int64)


def _table(bits: int) -> _Ids:
    return np.full(1 << bits, _NONE, np.uint32)


@kernel
def _locate(features: _Floats, scale: _Floats, strides: _Keys, axes: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """Find the simplex of every point: weights of its corners, the order in which coordinates turn, first key.

    Works on tiles with the point as the inner loop, so that everything but the sorting is vectorised.
    """
    count, dims = features.shape[0], len(axes) - 1
    weights = np.empty((count, dims + 1), np.float32)
    turns = np.empty((count, dims + 1), np.uint8)
    origins = np.zeros(count, np.int64)
    elevated, gap = np.empty((dims + 1, _TILE), np.float32), np.empty((_TILE, dims + 1), np.float32)
    rank, excess = np.empty((dims + 1, _TILE), np.int32), np.empty(_TILE, np.int32)
    total = np.empty(_TILE, np.float32)
    down, up = np.float32(1 / (dims + 1)), np.float32(dims + 1)
    for start in range(0, count, _TILE):
        tile = min(_TILE, count - start)
        total[:] = 0
        excess[:] = 0
        rank[:] = 0
        for j in range(dims, 0, -1):
            for x in range(tile):
                scaled = features[start + x, j - 1] * scale[j - 1]
                elevated[j, x] = total[x] - np.float32(j) * scaled
                total[x] += scaled
        elevated[0] = total
        # The nearest point whose coordinates are multiples of d + 1; their sum may miss zero by `excess`.
        for j in range(dims + 1):
            for x in range(tile):
                whole = np.rint(elevated[j, x] * down)
                elevated[j, x] -= whole * up
                excess[x] += np.int32(whole)
                origins[start + x] += np.int64(whole) * strides[j]
        for i in range(dims):
            for j in range(i + 1, dims + 1):
                for x in range(tile):
                    behind = np.int32(elevated[i, x] < elevated[j, x])
                    rank[i, x] += behind
                    rank[j, x] += np.int32(1) - behind
        for j in range(dims + 1):
            for x in range(tile):
                place = rank[j, x] + excess[x]
                wrap = np.int32(place < 0) - np.int32(place > dims)
                rank[j, x] = place + wrap * np.int32(dims + 1)
                elevated[j, x] -= np.float32(wrap) * up
                origins[start + x] += np.int64(wrap) * strides[j]
        for x in range(tile):
            for j in range(dims + 1):
                turn = np.uint32(dims - rank[j, x])
                turns[start + x, turn] = j
                gap[x, turn] = elevated[j, x] * down
            above = np.float32(0)
            for corner in range(dims + 1):
                weights[start + x, corner] = gap[x, corner] - above
                above = gap[x, corner]
            weights[start + x, 0] += np.float32(1) - above
    return weights, turns, origins


@kernel
def _find(table: _Ids, keys: _Keys, key: int) -> np.uint64:
    """Return the slot of a key, or the free slot where it belongs."""
    mask = np.uint64(len(table) - 1)
    slot = (np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32) & mask
    while table[slot] != _NONE and keys[table[slot]] != key:
        slot = (slot + np.uint64(1)) & mask
    return slot


@kernel
def _enter(table: _Ids, keys: _Keys, size: int) -> None:
    for point in range(size):
        table[_find(table, keys, keys[point])] = point


@kernel
def _number(
    turns: NDArray[np.uint8],
    origins: _Keys,
    strides: _Keys,
    axes: tuple[int, ...],
    corners: _Ids,
    table: _Ids,
    keys: _Keys,
    last: _Keys,
    done: int,
    size: int,
) -> tuple[int, int]:
    """Give every corner its number, in order of first use, until all are done or `keys` may overflow."""
    total = strides.sum()
    while done < len(origins) and size + len(axes) <= len(keys):
        key = origins[done] * len(axes)
        for corner in range(len(axes)):
            if done > 0 and key == last[corner]:
                corners[done, corner] = corners[done - 1, corner]
            else:
                last[corner] = key
                slot = _find(table, keys, key)
                if table[slot] == _NONE:
                    table[slot] = size
                    keys[size] = key
                    size += 1
                corners[done, corner] = table[slot]
            # From one corner to the next every coordinate grows by one, but for one that falls by d.
            key += total - len(axes) * strides[turns[done, corner]]
        done += 1
    return done, size


@kernel
def _link(table: _Ids, keys: _Keys, strides: _Keys) -> _Ids:
    axes, size, total = len(strides), len(keys), strides.sum()
    neighbours = np.full((axes, size, 2), size, np.uint32)
    for axis in range(axes):
        step = total - axes * strides[axis]
        for point in range(size):
            other = table[_find(table, keys, keys[point] + step)]
            if other != _NONE:
                neighbours[axis, point, 0] = other
                neighbours[axis, other, 1] = point
    return neighbours


@kernel
def blur(neighbours: _Ids, values: _Floats, spare: _Floats, width: Any) -> None:
    """Blur lattice values along all axes, in place.

    Args:
        neighbours: uint32 (d + 1, size, 2) of a lattice.
        values: float32 (size + 1, K); the last row is zero. Overwritten with the result.
        spare: Same shape, last row zero; overwritten.
        width: `lanes(K)`.
    """
    axes, size = neighbours.shape[0], neighbours.shape[1]
    source, target = values, spare
    for axis in range(axes):
        for point in range(size):
            first, second = neighbours[axis, point, 0], neighbours[axis, point, 1]
            for lane in range(len(width)):
                target[point, lane] = source[point, lane] + np.float32(0.5) * (
                    source[first, lane] + source[second, lane]
                )
        source, target = target, source
    if axes % 2:
        values[:] = spare


@kernel
def _splat(corners: _Ids, weights: _Floats, values: _Floats, held: _Floats, width: Any) -> None:
    for point in range(corners.shape[0]):
        for k in range(corners.shape[1]):
            for lane in range(len(width)):
                held[corners[point, k], lane] += weights[point, k] * values[point, lane]


@kernel
def _slice(corners: _Ids, weights: _Floats, held: _Floats, out: _Floats, width: Any) -> _Floats:
    for point in range(corners.shape[0]):
        for k in range(corners.shape[1]):
            for lane in range(len(width)):
                out[point, lane] += weights[point, k] * held[corners[point, k], lane]
    return out
