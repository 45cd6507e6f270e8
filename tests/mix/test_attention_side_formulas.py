"""The formulas of TransMix, LUMix, TokenMix, SMMix and TL-Align, against loops and definitions."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from wsol import mix
from wsol.mix._divergence import divergence
from wsol.mix._label_path import carry, carry_windows, merge
from wsol.mix._tokens import at_cells, present, to_pixels
from wsol.mix.base import Output
from wsol.mix.lumix import seen_share
from wsol.mix.smmix import paste_windows, region_means
from wsol.mix.tokenmix import block_cells, class_shares, random_cells, target_count

CLASSES = 5


def batch(count=3, *, multi=False, seed=0, size=(48, 80)):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, *size, generator=generator)
    if multi:
        return x, (torch.rand(count, CLASSES, generator=generator) > 0.6).float()
    return x, F.one_hot(torch.arange(count) % CLASSES, CLASSES).float()


@given(
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 999),
)
def test_cells_by_loops(size, grid, seed):
    mask = np.random.default_rng(seed).random(size)
    ours = at_cells(torch.from_numpy(mask)[None], grid)[0].numpy()
    theirs = [
        [mask[row * size[0] // grid[0], col * size[1] // grid[1]] for col in range(grid[1])] for row in range(grid[0])
    ]
    assert np.array_equal(ours, theirs)


def test_whole_cells_there_and_back():
    cells = torch.rand(2, 3, 5)
    assert torch.equal(at_cells(to_pixels(cells, (48, 80)), (3, 5)), cells)


def transmixed(attention, *, inner="cutmix", size=(12, 20), grid=(3, 5), seed=0, multi=False):
    strategy = mix.create("transmix", inner=inner)
    x, y = batch(size=size, multi=multi, seed=seed)
    mixed = strategy.mix(x, y, strategy.draw(x, np.random.default_rng(seed)))
    output = Output(logits=torch.zeros(3, CLASSES), attention=attention(mixed, grid), grid=grid)
    return mixed, strategy.relabel(mixed, output)


@given(seed=st.integers(0, 500), size=st.tuples(st.integers(5, 23), st.integers(5, 23)))
@settings(max_examples=25)
def test_transmix_between_area_and_attention(seed, size):
    def uniform(mixed, grid):
        return torch.full((3, grid[0] * grid[1]), 0.02)

    mixed, targets = transmixed(uniform, seed=seed, size=size)
    share = at_cells(mixed.own_mask, (3, 5)).mean((1, 2, 3))
    weight = ((share + mixed.own_weight) / 2)[:, None]
    torch.testing.assert_close(targets, weight * mixed.y_own + (1 - weight) * mixed.y_partner)

    def inside(mixed, grid):
        return 1 - at_cells(mixed.own_mask, grid).flatten(1)

    mixed, targets = transmixed(inside, seed=seed, size=size)
    pasted = (at_cells(mixed.own_mask, (3, 5)) < 1).any()
    if pasted:
        weight = (mixed.own_weight / 2)[:, None]
        torch.testing.assert_close(targets, weight * mixed.y_own + (1 - weight) * mixed.y_partner)


def test_transmix_leaves_mixup_alone():
    def drawn(mixed, grid):
        return torch.rand(3, grid[0] * grid[1])

    mixed, targets = transmixed(drawn, inner="mixup")
    torch.testing.assert_close(targets, mixed.targets)


def test_lumix_weights():
    x, y = batch()
    strategy = mix.create("lumix", inner="mixup", seen=0.3, noise=0.2)
    mixed = strategy.mix(x, y, strategy.draw(x, np.random.default_rng(0)))
    logits = torch.randn(3, CLASSES)
    chance = logits.softmax(1)
    own, partner = (chance * mixed.y_own).sum(1), (chance * mixed.y_partner).sum(1)
    weight = 0.5 * mixed.own_weight + 0.3 * own / (own + partner) + 0.2 * mixed.noise
    expected = weight[:, None] * mixed.y_own + (1 - weight[:, None]) * mixed.y_partner
    torch.testing.assert_close(strategy.relabel(mixed, Output(logits=logits)), expected)
    off = mix.create("lumix", inner="mixup", seen=0.0, noise=0.0)
    torch.testing.assert_close(off.relabel(mixed, Output(logits=logits)), mixed.targets)


def test_what_is_seen_with_several_labels_or_none():
    logits = torch.tensor([[1.0, 2.0, -1.0], [1.0, 2.0, -1.0]])
    y_own, y_partner = torch.tensor([[0.95, 0.95, 0.05], [0.0, 0, 0]]), torch.tensor([[0.05, 0.05, 0.95], [0, 1.0, 0]])
    chance = logits[0].softmax(0)
    mean = (chance[0] + chance[1]) / 2
    expected = torch.tensor([mean / (mean + chance[2]), 0.7])
    torch.testing.assert_close(seen_share(logits, y_own, y_partner, default=torch.tensor([0.1, 0.7])), expected)


@given(seed=st.integers(0, 5000), grid=st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_number_of_cells(seed, grid):
    drawn = np.random.default_rng(seed).random((1024, 4))
    assert block_cells(drawn, grid).sum() <= target_count(grid)
    assert random_cells(drawn[:, 0], grid).sum() == target_count(grid)


def test_number_of_cells_of_the_paper():
    counts = [block_cells(np.random.default_rng(seed).random((1024, 4)), (14, 14)).sum() for seed in range(300)]
    assert target_count((14, 14)) == max(counts) == 112
    assert np.mean(np.array(counts) == 112) > 0.95
    assert min(counts) > 100


def test_uniform_maps_weigh_by_area():
    cells = (torch.rand(2, 3, 5) > 0.5).float()
    for maps in (torch.full((4, 2, 3, 5), 0.3), torch.zeros(4, 2, 3, 5)):
        torch.testing.assert_close(class_shares(maps, cells), cells.mean((1, 2))[:, None, None].expand(2, 4, 2))


@given(seed=st.integers(0, 500), shift=st.tuples(st.integers(0, 2), st.integers(0, 2)))
@settings(max_examples=20)
def test_windows_by_loops(seed, shift):
    generator, window = torch.Generator().manual_seed(seed), (3, 4)
    labels = torch.rand(2, 5, 7, 2, generator=generator)
    attention = torch.rand(2 * 2 * 2, 12, 12, generator=generator).softmax(2)
    ours = carry_windows(labels, attention, window=window, shift=shift)
    expected = torch.empty_like(labels)
    for image in range(2):
        for row in range(5):
            for column in range(7):
                at_row, at_column = (row - shift[0]) % 5, (column - shift[1]) % 7
                which = image * 4 + at_row // 3 * 2 + at_column // 4
                weights = attention[which, at_row % 3 * 4 + at_column % 4].view(3, 4)
                total, mass = torch.zeros(2), 0.0
                for i in range(3):
                    for j in range(4):
                        there = (at_row // 3 * 3 + i, at_column // 4 * 4 + j)
                        if there[0] < 5 and there[1] < 7:
                            source = labels[image, (there[0] + shift[0]) % 5, (there[1] + shift[1]) % 7]
                            total, mass = total + weights[i, j] * source, mass + weights[i, j]
                expected[image, row, column] = (total / mass + labels[image, row, column]) / 2
    torch.testing.assert_close(ours, expected)


def test_merging_of_odd_grids():
    labels = torch.arange(15.0).view(1, 3, 5, 1)
    expected = [[(0 + 1 + 5 + 6) / 4, (2 + 3 + 7 + 8) / 4, (4 + 9) / 2], [10.5, 12.5, 14]]
    torch.testing.assert_close(merge(labels)[0, ..., 0], torch.tensor(expected))


def test_labels_of_all_classes_follow_from_the_share():
    generator = torch.Generator().manual_seed(0)
    layers = [torch.rand(2, 7, 7, generator=generator).softmax(2) for _ in range(3)]
    share = torch.rand(2, 7, 1, generator=generator)
    y_own, y_partner = torch.rand(2, 1, CLASSES, generator=generator), torch.rand(2, 1, CLASSES, generator=generator)
    labels = share * y_own + (1 - share) * y_partner
    for layer in layers:
        labels, share = carry(labels, layer), carry(share, layer)
    torch.testing.assert_close(labels, share * y_own + (1 - share) * y_partner)
    assert torch.equal(carry(labels, torch.eye(7).expand(2, 7, 7)), labels)


@given(seed=st.integers(0, 500), window=st.tuples(st.integers(1, 4), st.integers(1, 5)))
@settings(max_examples=25)
def test_windows_of_smmix(seed, window):
    generator = torch.Generator().manual_seed(seed)
    x, attention = torch.randn(3, 2, 8, 15, generator=generator), torch.rand(3, 4, 5, generator=generator)
    partner = np.random.default_rng(seed).permutation(3)
    images, own = paste_windows(x, attention, partner, window)
    assert (~own).sum((1, 2)).tolist() == [window[0] * window[1]] * 3
    places = [(r, c) for r in range(5 - window[0]) for c in range(6 - window[1])]

    def total(at, place):
        return attention[at, place[0] : place[0] + window[0], place[1] : place[1] + window[1]].double().sum().item()

    for at, other in enumerate(partner):
        (top, left), (row, column) = min(places, key=lambda p: total(at, p)), max(places, key=lambda p: total(other, p))
        expected = x[at].clone()
        height, width = window[0] * 2, window[1] * 3
        expected[:, top * 2 : top * 2 + height, left * 3 : left * 3 + width] = x[
            other, :, row * 2 : row * 2 + height, column * 3 : column * 3 + width
        ]
        assert torch.equal(images[at], expected)


def test_region_means():
    tokens, own = torch.randn(2, 6, 4), torch.tensor([[1, 1, 0, 0, 1, 0], [1, 1, 1, 1, 1, 1]]).bool()
    inside, outside = region_means(tokens, own)
    torch.testing.assert_close(inside[0], tokens[0, own[0]].mean(0))
    torch.testing.assert_close(outside[0], tokens[0, ~own[0]].mean(0))
    torch.testing.assert_close(inside[1], tokens[1].mean(0))
    assert torch.isfinite(outside).all()


def test_sides_of_smmix():
    strategy = mix.create("smmix")
    assert [strategy._side(14, position) for position in (0.0, 0.999)] == [3, 10]
    assert strategy._side(1, 0.9) == 1


def test_divergence():
    one, two = torch.randn(4, CLASSES), torch.randn(4, CLASSES)
    expected = (two.softmax(1) * (two.softmax(1) / one.softmax(1)).log()).sum(1).mean()
    torch.testing.assert_close(divergence(one, two, multi_label=False), expected)
    pairs = [torch.distributions.Bernoulli(logits=item) for item in (two, one)]
    torch.testing.assert_close(divergence(one, two, multi_label=True), torch.distributions.kl_divergence(*pairs).mean())


def test_present_labels():
    y = torch.tensor([[0.91, 0.03, 0.03], [0.05, 0.95, 0.95]])
    assert present(y).tolist() == [[1, 0, 0], [0, 1, 1]]
    assert math.isclose(float(present(y).sum()), 3)
