from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wsol.errors import ConfigError
from wsol.ops.permutohedral import build_lattice
from wsol.refine._lattice_torch import TorchLattice


def naive_filter(features: NDArray[np.float32], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lattice by the book, with a dictionary and float64: one key at a time."""
    d = features.shape[1]
    scale = np.sqrt(2 / 3) * (d + 1) / np.sqrt(np.arange(1, d + 1) * np.arange(2, d + 2))
    canonical = [[i] * (d + 1 - i) + [i - d - 1] * i for i in range(d + 1)]
    held: dict[tuple[int, ...], NDArray[np.float64]] = {}
    mixtures = []
    for feature, value in zip(features.astype(np.float64), values, strict=True):
        c = feature * scale
        elevated = np.array([c.sum()] + [c[j:].sum() - j * c[j - 1] for j in range(1, d + 1)])
        near = np.rint(elevated / (d + 1)).astype(int) * (d + 1)
        rank = np.argsort(np.argsort(-(elevated - near), kind="stable"), kind="stable") + near.sum() // (d + 1)
        near, rank = (
            np.where(rank < 0, near + d + 1, np.where(rank > d, near - d - 1, near)),
            rank % (d + 1),
        )
        gap = np.sort((elevated - near) / (d + 1))
        share = np.diff(np.concatenate([[gap[-1] - 1], gap]))
        mixture = []
        for remainder in range(d + 1):
            key = tuple(int(near[j] + canonical[remainder][rank[j]]) for j in range(d + 1))
            assert sum(key) == 0
            mixture.append((key, share[remainder]))
            held[key] = held.get(key, 0) + share[remainder] * value
        mixtures.append(mixture)
    nothing = np.zeros(values.shape[1])
    for axis in range(d + 1):
        step = np.ones(d + 1, int)
        step[axis] = -d
        held = {
            key: value
            + 0.5 * sum((held.get(tuple(np.array(key) + sign * step), nothing) for sign in (1, -1)), start=nothing)
            for key, value in held.items()
        }
    return np.array([sum(share * held[key] for key, share in mixture) for mixture in mixtures])


@pytest.mark.parametrize(("count", "dims", "channels"), [(60, 1, 1), (70, 2, 2), (50, 3, 9), (90, 5, 2)])
def test_equals_the_lattice_by_the_book(count: int, dims: int, channels: int) -> None:
    rng = np.random.default_rng(count)
    features = rng.normal(0, 1.3, (count, dims)).astype(np.float32)
    values = rng.normal(size=(count, channels)).astype(np.float32)
    got = build_lattice(features).filter(values)
    np.testing.assert_allclose(got, naive_filter(features, values.astype(np.float64)), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dims", [2, 5])
def test_approximates_a_gaussian_of_unit_width(dims: int) -> None:
    rng = np.random.default_rng(dims)
    features = rng.uniform(0, 4, (1500, dims)).astype(np.float32)
    smooth = np.sin(features[:, :1]).astype(np.float32)
    lattice = build_lattice(features)
    got = lattice.filter(smooth) / lattice.filter(np.ones_like(smooth))
    kernel = np.exp(-0.5 * ((features[:, None] - features[None]) ** 2).sum(-1))
    np.testing.assert_allclose(got, kernel @ smooth / kernel.sum(1, keepdims=True), atol=0.12)
    assert np.abs(got - kernel @ smooth / kernel.sum(1, keepdims=True)).mean() < 0.04


def test_corners_hold_the_point() -> None:
    features = np.random.default_rng(0).normal(0, 3, (500, 5)).astype(np.float32)
    lattice = build_lattice(features)
    np.testing.assert_allclose(lattice.weights.sum(1), 1, atol=1e-5)
    assert lattice.weights.min() > -1e-5
    assert lattice.corners.max() == lattice.size - 1
    assert len(np.unique(lattice.corners)) == lattice.size


def test_neighbours_are_mutual() -> None:
    lattice = build_lattice(np.random.default_rng(0).uniform(0, 2, (400, 3)).astype(np.float32))
    for axis, point in itertools.product(range(4), range(lattice.size)):
        after, before = lattice.neighbours[axis, point]
        assert after == lattice.size or lattice.neighbours[axis, after, 1] == point
        assert before == lattice.size or lattice.neighbours[axis, before, 0] == point


def test_numbering_survives_the_growth_of_the_table() -> None:
    # Far more lattice points than the table holds at first; far apart, so that every point only sees itself.
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(23.0)] * 3), -1).reshape(-1, 3)
    features = (9 * grid + rng.random(grid.shape)).astype(np.float32)[rng.permutation(len(grid))]
    lattice = build_lattice(features)
    assert lattice.size == 4 * len(grid) > 1 << 15
    values = rng.random((len(grid), 1), dtype=np.float32)
    got = lattice.filter(values)
    for point in range(0, len(grid), 97):
        alone = build_lattice(features[[point]]).filter(values[[point]])
        np.testing.assert_allclose(got[[point]], alone, rtol=1e-4)


def test_channels_do_not_mix() -> None:
    rng = np.random.default_rng(0)
    lattice, values = (
        build_lattice(rng.normal(size=(300, 3)).astype(np.float32)),
        rng.normal(size=(300, 9)).astype(np.float32),
    )
    together = lattice.filter(values)
    for channel in range(9):
        np.testing.assert_allclose(together[:, channel], lattice.filter(values[:, [channel]])[:, 0], atol=1e-5)


def test_widths_that_cannot_be_numbered_are_refused() -> None:
    features = np.random.default_rng(0).uniform(0, 1e7, (10, 5)).astype(np.float32)
    with pytest.raises(ConfigError, match="too small"):
        build_lattice(features)


@pytest.mark.parametrize(("count", "dims", "channels"), [(60, 1, 1), (70, 2, 3), (90, 5, 2), (1, 5, 4)])
def test_torch_equals_the_lattice_by_the_book(count: int, dims: int, channels: int) -> None:
    rng = np.random.default_rng(count + 1)
    features = rng.normal(0, 1.3, (count, dims)).astype(np.float32)
    values = rng.normal(size=(count, channels)).astype(np.float32)
    norm = 1 / np.sqrt(naive_filter(features, np.ones((count, 1))))
    got = TorchLattice(torch.from_numpy(features)).filter(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(got, norm * naive_filter(features, norm * values), atol=2e-5, rtol=1e-5)


def test_torch_refuses_widths_that_cannot_be_numbered() -> None:
    with pytest.raises(ConfigError, match="too small"):
        TorchLattice(1e7 * torch.rand(10, 5, generator=torch.Generator().manual_seed(0)))
