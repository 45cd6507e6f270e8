from __future__ import annotations

import numpy as np
import pytest

from wsol.errors import ConfigError, DataError
from wsol.ops.otsu import otsu_threshold
from wsol.ops.random_walk import neighbour_offsets, random_walk


def dense_walk(scores: np.ndarray, affinity: np.ndarray, offsets: np.ndarray, beta: float, steps: int) -> np.ndarray:
    """The published way: a dense symmetric matrix with ones on the diagonal, columns that sum to one, a power of it."""
    count, height, width = scores.shape
    matrix = np.eye(height * width)
    for plane, (dy, dx) in zip(affinity.astype(np.float64), offsets, strict=True):
        for y in range(height):
            for x in range(width):
                if 0 <= y + dy < height and 0 <= x + dx < width:
                    one, two = y * width + x, (y + dy) * width + x + dx
                    matrix[one, two] = matrix[two, one] = plane[y, x] ** beta
    transition = matrix / matrix.sum(axis=0)
    walked = scores.reshape(count, -1).astype(np.float64) @ np.linalg.matrix_power(transition, steps)
    return walked.reshape(scores.shape)


@pytest.mark.parametrize(("beta", "steps"), [(1.0, 1), (8.0, 16), (10.0, 256), (2.5, 3)])
@pytest.mark.parametrize("shape", [(2, 9, 13), (1, 1, 7), (3, 8, 1), (2, 3, 4)], ids=str)
def test_equals_the_dense_power(shape: tuple[int, int, int], beta: float, steps: int) -> None:
    rng, offsets = np.random.default_rng(0), neighbour_offsets(5)
    scores = rng.random(shape, dtype=np.float32)
    affinity = rng.random((len(offsets), *shape[1:]), dtype=np.float32)
    before = scores.copy()
    got = random_walk(scores, affinity, offsets, beta=beta, steps=steps)
    np.testing.assert_allclose(got, dense_walk(scores, affinity, offsets, beta, steps), atol=1e-5)
    np.testing.assert_array_equal(scores, before)


def test_neighbours_are_each_pair_once() -> None:
    offsets = neighbour_offsets(5)
    assert len(offsets) == 34  # as in PSA and IRNet
    both = {tuple(step) for step in [*offsets.tolist(), *(-offsets).tolist()]}
    assert both == {(y, x) for y in range(-5, 6) for x in range(-5, 6) if 0 < y * y + x * x < 25}
    with pytest.raises(ConfigError, match="radius"):
        neighbour_offsets(1)


def test_no_edges_and_no_steps_change_nothing() -> None:
    scores, offsets = np.random.default_rng(1).random((2, 5, 8), dtype=np.float32), neighbour_offsets(3)
    nothing = np.zeros((len(offsets), 5, 8), np.float32)
    np.testing.assert_array_equal(random_walk(scores, nothing, offsets, beta=2, steps=9), scores)
    np.testing.assert_array_equal(random_walk(scores, nothing + 1, offsets, beta=2, steps=0), scores)


def test_entries_that_leave_the_grid_are_not_read() -> None:
    scores, offsets = np.random.default_rng(1).random((2, 5, 8), dtype=np.float32), neighbour_offsets(4)
    affinity = np.random.default_rng(2).random((len(offsets), 5, 8), dtype=np.float32)
    changed = affinity.copy()
    for plane, (dy, dx) in zip(changed, offsets, strict=True):
        for y in range(5):
            for x in range(8):
                if not (y + dy < 5 and 0 <= x + dx < 8):
                    plane[y, x] = 7
    got = random_walk(scores, changed, offsets, beta=2, steps=5)
    np.testing.assert_array_equal(got, random_walk(scores, affinity, offsets, beta=2, steps=5))


def test_mistakes_are_refused() -> None:
    scores, offsets = np.zeros((2, 5, 8), np.float32), neighbour_offsets(3)
    affinity = np.ones((len(offsets), 5, 8), np.float32)
    with pytest.raises(DataError, match="expected scores"):
        random_walk(scores[:, 1:], affinity, offsets, beta=1, steps=1)
    for bad in (-1, np.nan, np.inf):
        with pytest.raises(DataError, match="affinities"):
            random_walk(scores, affinity * np.float32(bad), offsets, beta=1, steps=1)
    for options in ({"beta": 0, "steps": 1}, {"beta": 1, "steps": -1}):
        with pytest.raises(ConfigError):
            random_walk(scores, affinity, offsets, **options)


def test_otsu_equals_the_exhaustive_search() -> None:
    rng = np.random.default_rng(3)
    values = np.clip(
        np.where(rng.random((23, 31)) < 0.3, rng.normal(0.7, 0.1, (23, 31)), rng.normal(0.2, 0.08, (23, 31))), 0, 1
    )
    levels = np.rint(values * 255)

    def between(level: int) -> float:
        low, high = levels[levels <= level], levels[levels > level]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2 if len(low) and len(high) else 0.0

    best = max(range(255), key=between)
    assert between(round(otsu_threshold(values) * 255 - 0.5)) == pytest.approx(between(best))


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_otsu_of_a_constant_is_just_above_zero(value: float) -> None:
    assert 0 < otsu_threshold(np.full((4, 7), value, np.float32)) < 0.01
