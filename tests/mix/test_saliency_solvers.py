"""Graph cuts against brute force, patch transport against its rules, and the composition of Co-Mixup."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsol.mix._graph_cut import cut_quadratic, swap
from wsol.mix._transport import complete, transport, transport_plan
from wsol.mix.comixup import CoMixup, gather, own_places, push_apart, salient_peaks

SHAPES = st.sampled_from([(1, 1), (1, 4), (3, 1), (2, 2), (2, 3), (3, 2)])


def all_labels(count, shape):
    return [np.array(case).reshape(shape) for case in itertools.product(range(count), repeat=shape[0] * shape[1])]


def quadratic_energy(labels, unary, down, right):
    scale = (len(unary) - 1) ** 2
    own = np.take_along_axis(unary, labels[None], 0).sum() * scale
    return own + (down * np.diff(labels, axis=0) ** 2).sum() + (right * np.diff(labels, axis=1) ** 2).sum()


@settings(max_examples=60)
@given(shape=SHAPES, count=st.integers(2, 4), seed=st.integers(0, 10_000), price=st.integers(0, 40))
def test_the_cut_is_the_optimum(shape, count, seed, price):
    if count ** (shape[0] * shape[1]) > 5000:
        count = 3
    rng = np.random.default_rng(seed)
    unary = rng.integers(-5, 30, (count, *shape))
    down = rng.integers(0, price + 1, (shape[0] - 1, shape[1]))
    right = rng.integers(0, price + 1, (shape[0], shape[1] - 1))
    found = cut_quadratic(unary, down, right)
    energies = {tuple(case.ravel()): quadratic_energy(case, unary, down, right) for case in all_labels(count, shape)}
    best = min(energies.values())
    assert energies[tuple(found.ravel())] == best
    ties = [np.array(key).reshape(shape) for key, value in energies.items() if value == best]
    assert all((found >= case).all() for case in ties), "of several optima, the one with the greatest labels"


def potts_energy(labels, unary, price, weight):
    own = np.take_along_axis(unary, labels[..., None], 2).sum()
    pairs = price[labels[1:], labels[:-1]].sum() + price[labels[:, 1:], labels[:, :-1]].sum()
    return own + weight * pairs


@settings(max_examples=60)
@given(shape=SHAPES, count=st.integers(2, 4), seed=st.integers(0, 10_000), weight=st.integers(0, 5))
def test_no_swap_improves_what_swap_returns(shape, count, seed, weight):
    rng = np.random.default_rng(seed)
    unary = rng.integers(0, 30, (*shape, count))
    price = np.triu(rng.integers(0, 9, (count, count)), 1)
    price = price + price.T
    start = rng.integers(count, size=shape)
    found = swap(unary, price, weight, start)
    energy = potts_energy(found, unary, price, weight)
    assert energy <= potts_energy(start, unary, price, weight)
    for a, b in itertools.combinations(range(count), 2):
        cells = (found == a) | (found == b)
        for choice in itertools.product((a, b), repeat=int(cells.sum())):
            other = found.copy()
            other[cells] = choice
            assert energy <= potts_energy(other, unary, price, weight)


def test_larger_grids_are_solved_too():
    rng = np.random.default_rng(0)
    unary, down, right = rng.integers(0, 99, (3, 16, 16)), rng.integers(0, 9, (15, 16)), rng.integers(0, 9, (16, 15))
    found = cut_quadratic(unary, down, right)
    energy = quadratic_energy(found, unary, down, right)
    for row, column, label in itertools.product(range(16), range(16), range(3)):
        other = found.copy()
        other[row, column] = label
        assert energy <= quadratic_energy(other, unary, down, right)


@settings(max_examples=40)
@given(side=st.sampled_from([2, 4, 8]), seed=st.integers(0, 10_000), power=st.integers(1, 12))
def test_transport_moves_whole_patches(side, seed, power):
    generator = torch.Generator().manual_seed(seed)
    saliency = torch.rand(3, side, side, generator=generator) ** power
    saliency = saliency / saliency.sum((1, 2), keepdim=True)
    mask = torch.randint(0, 3, (3, side, side), generator=generator) / 2
    plan = transport_plan(mask, saliency)
    assert set(plan.unique().tolist()) <= {0.0, 1.0}
    assert plan.sum(1).max() <= 1, "a cell takes one patch"
    assert plan.sum(2).max() <= 1, "a patch takes one cell"
    x = torch.randn(3, 2, side * 3, side * 5, generator=generator)
    moved = transport(x, complete(plan))
    for image, cell in itertools.product(range(3), range(side**2)):
        source = plan[image, :, cell].argmax() if plan[image, :, cell].any() else torch.tensor(cell)
        (r, c), (r2, c2) = divmod(cell, side), divmod(int(source), side)
        expected = x[image, :, r2 * 3 : r2 * 3 + 3, c2 * 5 : c2 * 5 + 5]
        assert torch.equal(moved[image, :, r * 3 : r * 3 + 3, c * 5 : c * 5 + 5], expected)


def test_nothing_moves_without_a_reason():
    flat = torch.full((1, 4, 4), 1 / 16)
    assert torch.equal(transport_plan(torch.ones(1, 4, 4), flat)[0], torch.eye(16))
    peak = torch.zeros(1, 4, 4)
    peak[0, 0, 0] = 1.0
    mask = torch.zeros(1, 4, 4)
    mask[0, 0, 1] = 1.0
    plan = transport_plan(mask, peak)[0]
    assert plan[0, 1] == 1, "the salient patch moves next door, where the mask shows it"


def spiky(count, grid, seed):
    rng = np.random.default_rng(seed)
    saliency = rng.random((count, grid, grid)) ** 8
    return saliency / saliency.sum((1, 2), keepdims=True), rng.random((count, 2)) * 30, rng


@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_composition(count):
    strategy = CoMixup()
    saliency, peaks, rng = spiky(count, 4, count)
    start = rng.integers(count, size=(count, 4, 4))
    labels = strategy.compose(saliency, peaks, rng.dirichlet(np.full(count, 2.0)), start)
    assert labels.shape == (count, 4, 4, count)
    np.testing.assert_allclose(labels.sum(-1), 1.0)
    assert set(np.unique(labels)) <= {0.0, 0.5, 1.0}
    if count == 20:
        inputs = (labels.sum((1, 2)) > 0).sum(1)
        assert inputs.max() > 1, "outputs show several inputs"
        kept = np.einsum("opqn,npq->o", labels, saliency)
        drawn = np.einsum("opqn,npq->o", np.eye(count)[start], saliency)
        assert kept.mean() > 2 * drawn.mean(), "and more of what is salient than at the start"
        assert ((labels.sum((0, 1, 2)) > 0).sum()) > count / 2, "the outputs differ"


def test_smooth_prices_make_smooth_labels():
    saliency, peaks, rng = spiky(6, 4, 3)
    start, prior = rng.integers(6, size=(6, 4, 4)), np.full(6, 1 / 6)

    def borders(beta):
        labels = CoMixup(beta=beta).compose(saliency, peaks, prior, start)
        return np.abs(np.diff(labels, axis=1)).sum() + np.abs(np.diff(labels, axis=2)).sum()

    assert borders(0.0) > borders(2.0) > borders(100.0) == 0


def test_diversity_spreads_the_inputs():
    saliency, peaks, rng = spiky(8, 4, 5)
    saliency[0] *= 5  # one input outshines all others
    start, prior = rng.integers(8, size=(8, 4, 4)), np.full(8, 1 / 8)
    shares = [CoMixup(gamma=gamma).compose(saliency, peaks, prior, start)[..., 0].mean() for gamma in (0.0, 1.0)]
    assert shares[1] < shares[0] / 2


def test_twins_are_pushed_apart():
    used = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 1], [1, 1, 0]], bool)
    expected = np.zeros((5, 3))
    expected[0, 0] = expected[1, 0] = expected[1, 1] = expected[4, 1] = 1
    np.testing.assert_array_equal(push_apart(np.pad(used, ((0, 0), (0, 2))))[:, :3], expected)


def test_outputs_stand_where_they_show_most():
    shares = np.array([[0.1, 0.9, 0.0], [0.2, 0.8, 0.0], [0.3, 0.3, 0.4]])
    assert own_places(shares).tolist() == [1, 0, 2]


def test_peaks_are_windows_and_not_pixels():
    saliency = torch.zeros(2, 20, 31)
    saliency[0, 3, 4] = 1.0
    saliency[0, 10:18, 20:28] = 0.5
    saliency[1, 12, 30] = 1.0
    assert salient_peaks(saliency)[0].tolist() == [10, 20]
    assert salient_peaks(torch.rand(2, 3, 5)).shape == (2, 2)


def test_labels_of_images_composed_of_many():
    y = torch.eye(4)[[0, 1, 2]]
    shares = torch.tensor([[0.5, 0.2, 0.3], [0.0, 1.0, 0.0], [0.25, 0.75, 0.0]])
    result = gather(torch.zeros(3, 3, 2, 2), y, shares, torch.zeros(3, 1, 2, 2))
    torch.testing.assert_close(result.targets, shares @ y)
    assert result.partner.tolist() == [2, 1, 1]
    weight = result.own_weight[:, None]
    torch.testing.assert_close(weight * y + (1 - weight) * result.y_partner, result.targets)
    torch.testing.assert_close(result.y_partner[0], torch.tensor([0.0, 0.4, 0.6, 0.0]))
    assert torch.equal(result.y_partner[1], y[1])
