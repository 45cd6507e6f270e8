"""Random walk on a grid graph: scores spread along affinities to near positions, step by step.

PSA (Ahn and Kwak, CVPR 2018, https://arxiv.org/abs/1803.10464) and IRNet (Ahn et al., CVPR 2019,
https://arxiv.org/abs/1904.05044) square a dense transition matrix T eight times and multiply the scores with it.
T^256 x is the same as 256 products with T, whose rows have some 60 entries: no dense matrix is ever formed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsol.errors import ConfigError, DataError
from wsol.ops.jit import kernel

_Floats = NDArray[np.float32]


def neighbour_offsets(radius: int) -> NDArray[np.int64]:
    """Return the steps (dy, dx) to every neighbour nearer than a radius, each unordered pair of positions once.

    Args:
        radius: In grid positions, exclusive; 5 gives the 34 offsets of PSA and IRNet.

    Returns:
        int64 (n_offsets, 2): the half disc dy > 0, or dy = 0 and dx > 0; row by row.

    Raises:
        ConfigError: When the radius is below 2, which leaves no neighbour.
    """
    if radius < 2:
        raise ConfigError(f"must be at least 2, got {radius}", where="radius")
    reach = range(-radius + 1, radius)
    near = [(dy, dx) for dy in range(radius) for dx in reach if dy * dy + dx * dx < radius * radius]
    return np.array([step for step in near if step > (0, 0)], dtype=np.int64)


def random_walk(
    scores: NDArray[np.floating],
    affinity: NDArray[np.floating],
    offsets: NDArray[np.integer],
    *,
    beta: float,
    steps: int,
) -> NDArray[np.float32]:
    """Spread scores along affinities: each step replaces a score by its mean under the transition matrix.

    With A the symmetric matrix of the affinities to the power beta and ones on the diagonal, and D its row sums, this
    is (D^-1 A)^steps x: PSA and IRNet with `steps` = 2^t for t squarings.

    Args:
        scores: (K, h, w).
        affinity: (n_offsets, h, w), not negative: between (y, x) and (y + dy, x + dx) for each offset (dy, dx), in
            both directions. Entries whose second position lies outside the grid are not read; 0 means no edge.
        offsets: int (n_offsets, 2), each unordered pair of positions once, as `neighbour_offsets` gives them.
        beta: Power of the affinities (8 in PSA, 10 in IRNet).
        steps: Number of steps (256 in both).

    Returns:
        float32 (K, h, w); a mean of the scores, so within their range.

    Raises:
        DataError: When the shapes do not fit together, or an affinity is negative or not finite.
        ConfigError: When an option is out of range.
    """
    offsets = np.asarray(offsets, dtype=np.int64)
    if scores.ndim != 3 or affinity.shape != (len(offsets), *scores.shape[1:]) or offsets.shape[1:] != (2,):
        shapes = f"{scores.shape}, {affinity.shape}, {offsets.shape}"
        raise DataError(f"expected scores (K, h, w), affinity (n, h, w) and offsets (n, 2), got {shapes}")
    if affinity.size and not (affinity.min() >= 0 and affinity.max() < np.inf):
        raise DataError(f"affinities must be at least 0 and finite, got {affinity.min()} to {affinity.max()}")
    if not beta > 0:
        raise ConfigError(f"must be positive, got {beta}", where="beta")
    if steps < 0:
        raise ConfigError(f"must be at least 0, got {steps}", where="steps")
    weights = np.power(affinity, np.float32(beta), dtype=np.float32)
    walked = np.array(scores, dtype=np.float32, order="C")
    _walk(walked, weights, np.ascontiguousarray(offsets, dtype=np.int64), steps)
    return walked


@kernel
def _walk(scores: _Floats, weights: _Floats, offsets: NDArray[np.int64], steps: int) -> None:
    """Walk in place; scores (K, h, w) and weights (n, h, w) are contiguous.

    A step adds the mean difference to the neighbours, where constants cancel: the product with a rounded transition
    matrix would let all scores grow or shrink a little with every step.
    """
    ones, degrees = np.ones((1, *scores.shape[1:]), np.float32), np.ones((1, *scores.shape[1:]), np.float32)
    _add_flow(ones, weights, offsets, np.float32(0), degrees)
    for _ in range(steps):
        flow = np.zeros_like(scores)
        _add_flow(scores, weights, offsets, np.float32(1), flow)
        for k in range(len(scores)):
            scores[k] += flow[k] / degrees[0]


@kernel
def _add_flow(scores: _Floats, weights: _Floats, offsets: NDArray[np.int64], own: np.float32, flow: _Floats) -> None:
    """Add to the flow of each position i the sum over its neighbours j of w_ij (x_j - own * x_i)."""
    count, height, width = scores.shape
    for at in range(len(offsets)):
        dy, dx = offsets[at]
        left, right = max(0, -dx), min(width, width - dx)
        if left >= right:
            continue
        for y in range(max(0, -dy), min(height, height - dy)):
            weight = weights[at, y, left:right]
            for k in range(count):
                # Two loops, as both write to the same row where dy is 0; each is vectorized.
                near, far = scores[k, y, left:right], scores[k, y + dy, left + dx : right + dx]
                here, there = flow[k, y, left:right], flow[k, y + dy, left + dx : right + dx]
                for x in range(right - left):
                    here[x] += weight[x] * (far[x] - own * near[x])
                for x in range(right - left):
                    there[x] += weight[x] * (near[x] - own * far[x])
