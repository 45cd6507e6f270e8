"""Mean-field inference of a fully connected CRF with Potts compatibility over lattice filters.

Krähenbühl, Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NeurIPS 2011,
https://arxiv.org/abs/1210.5644. A softmax only sees differences of its inputs, and a Potts message is linear in the
marginals, so the differences of the marginals to channel 0 are filtered: C - 1 channels instead of C.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsol.ops.jit import kernel
from wsol.ops.permutohedral import Lattice, blur, lanes

_Floats = NDArray[np.float32]
_TILE = 128


def mean_field(unary: _Floats, kernels: Sequence[Lattice], compat: Sequence[float], *, iterations: int) -> _Floats:
    """Infer the marginals.

    Besides the arguments and the result it holds N (C - 1) floats, twice S (C - 1) for the S points of all lattices,
    and a copy of their corners and weights.

    Args:
        unary: float32 (C, N) energies, C >= 2, finite.
        kernels: Filters of the N points; normalisation is part of their weights.
        compat: Potts weight of each kernel, at least 0.
        iterations: Number of updates after the start at the softmax of the unaries.

    Returns:
        float32 (C, N): marginals, summing to one over C.
    """
    logits = np.ascontiguousarray((unary[0] - unary[1:]).T)
    width = lanes(logits.shape[1])
    # All lattices share one array of values; each has a row of zeros at its end for missing neighbours.
    starts = np.cumsum([0, *(lattice.size + 1 for lattice in kernels)])
    corners = np.concatenate([lattice.corners for lattice in kernels], axis=1)
    weights = np.concatenate([lattice.weights for lattice in kernels], axis=1)
    axes = [lattice.corners.shape[1] for lattice in kernels]
    corners += np.repeat(starts[:-1], axes).astype(np.uint32)
    # The weights act twice, in splat and slice.
    weights *= np.repeat(np.sqrt(compat), axes).astype(np.float32)
    held = np.zeros((int(starts[-1]), logits.shape[1]), np.float32)
    splat = np.zeros_like(held)
    for _ in range(iterations):
        _update(logits, corners, weights, held, splat, width)
        held, splat = splat, held
        for lattice, start, end in zip(kernels, starts, starts[1:], strict=False):
            blur(lattice.neighbours, held[start:end], splat[start:end], width)
        splat[:] = 0
    del splat
    marginals = np.empty(unary.shape, np.float32)
    _finish(logits, corners, weights, held, width, marginals)
    return marginals


@kernel
def _exp(x: Any) -> Any:
    """Return exp(x) for float32 x <= 0, within 2 units in the last place: unlike np.exp, LLVM vectorises it.

    Cody and Waite's reduction to |r| <= log(2) / 2 and the polynomial of the Cephes library.
    """
    x = max(x, np.float32(-87))
    power = np.rint(x * np.float32(1.44269504))
    r = x - power * np.float32(0.693359375) + power * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1)
    return p * np.int32((np.int32(power) + np.int32(127)) << np.int32(23)).view(np.float32)


@kernel
def _update(
    logits: _Floats, corners: NDArray[np.uint32], weights: _Floats, held: _Floats, splat: _Floats, width: Any
) -> None:
    """Slice the messages, take the softmax, and splat its differences to channel 0."""
    state, base = np.empty((_TILE, len(width)), np.float32), np.empty(_TILE, np.float32)
    for start in range(0, logits.shape[0], _TILE):
        tile = min(_TILE, logits.shape[0] - start)
        _softmax(start, tile, logits, corners, weights, held, width, state, base)
        for x in range(tile):
            point = start + x
            for lane in range(len(width)):
                state[x, lane] -= base[x]
            for k in range(corners.shape[1]):
                corner, weight = corners[point, k], weights[point, k]
                for lane in range(len(width)):
                    splat[corner, lane] += weight * state[x, lane]


@kernel
def _finish(
    logits: _Floats, corners: NDArray[np.uint32], weights: _Floats, held: _Floats, width: Any, marginals: _Floats
) -> None:
    """Slice the messages, take the softmax, and store it."""
    state, base = np.empty((_TILE, len(width)), np.float32), np.empty(_TILE, np.float32)
    for start in range(0, logits.shape[0], _TILE):
        tile = min(_TILE, logits.shape[0] - start)
        _softmax(start, tile, logits, corners, weights, held, width, state, base)
        for x in range(tile):
            marginals[0, start + x] = base[x]
        for lane in range(len(width)):
            for x in range(tile):
                marginals[lane + 1, start + x] = state[x, lane]


@kernel
def _softmax(
    start: int,
    tile: int,
    logits: _Floats,
    corners: NDArray[np.uint32],
    weights: _Floats,
    held: _Floats,
    width: Any,
    state: _Floats,
    base: _Floats,
) -> None:
    """Write the marginals of the points from `start` on to `state`, and those of channel 0 to `base`."""
    flat = state.reshape(-1)
    for x in range(tile):
        point = start + x
        for lane in range(len(width)):
            state[x, lane] = logits[point, lane]
        for k in range(corners.shape[1]):
            corner, weight = corners[point, k], weights[point, k]
            for lane in range(len(width)):
                state[x, lane] += weight * held[corner, lane]
    for x in range(tile):
        highest = np.float32(0)
        for lane in range(len(width)):
            highest = max(highest, state[x, lane])
        base[x] = -highest
        for lane in range(len(width)):
            state[x, lane] -= highest
    for x in range(tile):
        base[x] = _exp(base[x])
    for i in range(tile * len(width)):
        flat[i] = _exp(flat[i])
    for x in range(tile):
        total = base[x]
        for lane in range(len(width)):
            total += state[x, lane]
        share = np.float32(1) / total
        base[x] *= share
        for lane in range(len(width)):
            state[x, lane] *= share
