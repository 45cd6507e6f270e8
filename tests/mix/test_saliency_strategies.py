"""Strategies by saliency, pixel by pixel: every mixed pixel and every label against its definition."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wsol import mix
from wsol.errors import ConfigError
from wsol.mix._transport import complete, transport_plan
from wsol.mix.comixup import CoMixup
from wsol.mix.keepaugment import box_sums, find_boxes
from wsol.mix.puzzlemix import PuzzleMix, block_saliency, border_differences, log_prior
from wsol.mix.rmix import mix_patches
from wsol.mix.saliency_grafting import graft, importance
from wsol.mix.snapmix import paste, percent_map, positive_classes, weigh

SIZES = st.tuples(st.integers(4, 19), st.integers(4, 23))
COUNTS = st.sampled_from([1, 2, 3, 5])
SEEDS = st.integers(0, 10_000)


def batch(count, size, seed, classes=6):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 3, *size, generator=generator)
    y = torch.eye(classes)[torch.randint(classes, (count,), generator=generator)]
    rng = np.random.default_rng(seed)
    return x, y, rng.permutation(count), rng


def assert_mixed(result, x, y, *, mixes_labels=True):
    """The mask says whose each pixel is, and the weight is its mean."""
    share, other = result.own_mask, x[result.partner]
    torch.testing.assert_close(result.images, share * x + (1 - share) * other)
    torch.testing.assert_close(share.mean((1, 2, 3)), result.own_weight)
    weight = result.own_weight[:, None]
    if mixes_labels:
        torch.testing.assert_close(result.targets, weight * y + (1 - weight) * result.y_partner)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rmix", {"alpha": 0.0}, "alpha must be positive"),
        ("rmix", {"grids": [2, 0]}, "grids must be positive"),
        ("rmix", {"policy": "dqn"}, "cannot be 'dqn'"),
        ("snapmix", {"prob": 2.0}, r"prob must lie in \[0, 1\]"),
        ("puzzlemix", {"beta": -1.0}, "must not be negative"),
        ("puzzlemix", {"n_labels": 1}, "n_labels starts at 2"),
        ("puzzlemix", {"t_grid": 6}, "t_grid must be 1, 2, 4, 8 or 16"),
        ("comixup", {"rounds": 0}, "start at 1"),
        ("keepaugment", {"tau": 1.5}, r"tau must lie in \[0, 1\]"),
        ("keepaugment", {"size": 0.0}, r"size must lie in \(0, 1\]"),
        ("keepaugment", {"mode": "paste", "inner": "cutmux"}, "did you mean 'cutmix'"),
        ("saliency_grafting", {"grid": 0}, "grid must be positive"),
    ],
)
def test_mistakes_are_named(name, options, message):
    with pytest.raises(ConfigError, match=message):
        mix.create(name, **options)


@settings(max_examples=30)
@given(count=COUNTS, size=SIZES, grid=st.sampled_from([2, 3, 4]), seed=SEEDS)
def test_rmix_case_by_case(count, size, grid, seed):
    x, y, partner, rng = batch(count, size, seed)
    saliency = torch.from_numpy(rng.random((count, grid, grid))).float()
    quantiles = torch.linspace(0, 0.99, 10)[rng.integers(10, size=count)]
    weight = float(rng.random())
    result = mix_patches(x, y, saliency, quantiles, weight, partner)
    assert_mixed(result, x, y)
    rows, columns = ((np.arange(side) * grid // side) for side in size)
    for i, j in enumerate(partner):
        limits = [np.quantile(saliency[k].numpy(), quantiles[k].item()) for k in (i, j)]
        for r, c in ((0, 0), (size[0] - 1, 0), (size[0] // 2, size[1] - 1)):
            ours, theirs = (saliency[k, rows[r], columns[c]].item() >= limit - 1e-7 for k, limit in zip((i, j), limits))
            expected = {(True, False): x[i], (False, True): x[j]}.get(
                (ours, theirs), weight * x[i] + (1 - weight) * x[j]
            )
            torch.testing.assert_close(result.images[i, :, r, c], expected[:, r, c])


def test_rmix_without_thresholds_is_mixup():
    x, y, partner, rng = batch(5, (9, 14), 0)
    saliency = torch.from_numpy(rng.random((5, 4, 4))).float()
    result = mix_patches(x, y, saliency, torch.zeros(5), 0.3, partner)
    plain = mix.create("mixup").mix(x, y, {"lam": 0.3, "partner": partner})
    torch.testing.assert_close(result.images, plain.images)
    torch.testing.assert_close(result.targets, plain.targets)


BOXES = st.tuples(st.floats(0, 0.99), st.floats(0, 0.99), st.floats(0, 1), st.floats(0, 1))


def make_box(size, where):
    top, left = int(where[0] * size[0]), int(where[1] * size[1])
    return top, left, top + 1 + int(where[2] * (size[0] - top - 1)), left + 1 + int(where[3] * (size[1] - left - 1))


@settings(max_examples=30)
@given(count=COUNTS, size=SIZES, seed=SEEDS, own=BOXES, other=BOXES)
def test_snapmix_pastes_a_resized_box(count, size, seed, own, other):
    x, y, partner, _ = batch(count, size, seed)
    own, other = make_box(size, own), make_box(size, other)
    result = paste(x, y, own, other, partner)
    top, left, bottom, right = own
    assert torch.equal(result.images[:, :, :top], x[:, :, :top])
    assert torch.equal(result.images[:, :, bottom:], x[:, :, bottom:])
    assert torch.equal(result.images[:, :, top:bottom, right:], x[:, :, top:bottom, right:])
    # Corners are aligned; a box that is enlarged from or shrunk to one pixel has its first corner only.
    torch.testing.assert_close(result.images[:, :, top, left], x[partner, :, other[0], other[1]])
    assert_weight = (bottom - top) * (right - left) / (size[0] * size[1])
    torch.testing.assert_close(result.own_weight, torch.full((count,), 1 - assert_weight))
    torch.testing.assert_close(result.own_mask.mean((1, 2, 3)), result.own_weight)


def test_snapmix_weighs_each_class():
    y = torch.tensor([[1.0, 0, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]])
    partner, (classes, labels) = np.array([1, 2, 0]), positive_classes(y)
    assert [sorted(row[keep].tolist()) for row, keep in zip(classes, labels)] == [[0, 2], [2, 3], []]
    inside = {(0, 0): (0.1, 0.2), (0, 2): (0.3, 0.4), (1, 2): (0.5, 0.6), (1, 3): (0.7, 0.8)}
    shares = torch.zeros(3, 2, 2)
    for row in range(3):
        for k in range(2):
            if labels[row, k]:
                shares[row, k] = torch.tensor(inside[row, int(classes[row, k])])
    targets = weigh(y, classes, labels, shares, partner, covered=0.25)
    both = (1 - 0.3) + 0.6  # class 2 of images 0 and 1
    expected = [[1 - 0.1, 0, 2 * both, 0.8], [0, 0, 1 - 0.5, 1 - 0.7], [0.2, 0, 0.4, 0]]
    torch.testing.assert_close(targets, torch.tensor(expected))


def test_every_class_of_an_image_may_be_a_label():
    classes, labels = positive_classes(torch.ones(2, 3) * 0.9 + 0.05)
    assert labels.all()
    assert sorted(classes[0].tolist()) == [0, 1, 2]


def test_snapmix_weighs_by_area_where_a_map_is_flat():
    """The last features of small images are a single cell."""
    x, y, partner, _ = batch(3, (9, 14), 0)
    flat = replace(STUB, classifier=copy.copy(STUB.classifier))
    flat.classifier.to_grid = lambda features, height, width: features.mean((2, 3), keepdim=True)
    draws = {"lam": 0.5, "lam_partner": 0.3, "centre": (4, 6), "centre_partner": (5, 5), "partner": partner}
    result = mix.create("snapmix").mix(x, y, draws, flat)
    assert 0 < result.own_weight[0] < 1
    weight = result.own_weight[:, None]
    torch.testing.assert_close(result.targets, weight * y + (1 - weight) * y[partner])


def test_smoothed_labels_are_found():
    y = torch.eye(5)[[3, 0]]
    for smoothed in (y * 0.9 + 0.02, y * 0.9 + 0.05):
        classes, labels = positive_classes(smoothed)
        assert classes.tolist() == [[3], [0]]
        assert labels.all()


def test_percent_maps_start_at_zero_and_sum_to_one():
    maps = percent_map(torch.randn(3, 4, 5) * 100 - 50, (31, 42))
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(3))
    assert torch.equal(maps.amin((1, 2)), torch.zeros(3))


class Stub:
    """A network whose saliency and class maps do not matter."""

    mean, std, name, layer, pools_linearly, num_classes = (0.5,) * 3, (0.2,) * 3, "stub", None, True, 6

    def __init__(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 6)
        self.module = nn.Module()
        self.module.add_module("body", self.body)
        self.module.add_module("head", self.head)
        self.module.forward_features = lambda x: self.body(x).tanh()
        self.module.forward_head = lambda z: self.head(z.mean((2, 3)))
        self.module.forward = lambda x: self.module.forward_head(self.module.forward_features(x))

    def to_grid(self, features, height, width):
        return features

    def head_weight(self):
        return self.head.weight, self.head.bias


STUB = mix.Context(Stub(), nn.functional.cross_entropy)  # type: ignore[arg-type]
CASES = {
    "rmix": {},
    "puzzlemix": {"transport": False, "beta": 0.05},
    "keepaugment": {"mode": "paste", "inner": "cutmix"},
    "saliency_grafting": {"grid": 3},
}


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=12)
@given(count=COUNTS, size=SIZES, seed=SEEDS)
def test_every_pixel_is_accounted_for(name, count, size, seed):
    x, y, _, rng = batch(count, size, seed)
    strategy, before = mix.create(name, **CASES[name]), (x.clone(), y.clone(), torch.get_rng_state())
    draws = strategy.draw(x, rng)
    result = strategy.mix(x, y, draws, STUB)
    assert sorted(result.partner.tolist()) == list(range(count))
    assert_mixed(result, x, y, mixes_labels=name != "saliency_grafting")
    torch.testing.assert_close(result.targets.sum(1), torch.ones(count))
    assert result.targets.min() >= 0
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


@settings(max_examples=8)
@given(count=st.sampled_from([1, 2, 5, 9]), size=SIZES, seed=SEEDS)
def test_comixup_accounts_for_all_images(count, size, seed):
    x, y, _, rng = batch(count, size, seed)
    strategy = CoMixup(part=4, beta=0.01)
    colors = torch.eye(count)[:, :, None, None].expand(count, count, *size)  # channel k is what image k gives
    draws = strategy.draw(x, rng)
    context = mix.Context(Colors(count), STUB.criterion)  # type: ignore[arg-type]
    result = strategy.mix(colors, y, draws, context)
    shares = result.images.mean((2, 3))
    torch.testing.assert_close(shares.sum(1), torch.ones(count))
    torch.testing.assert_close(result.targets, shares @ y)
    torch.testing.assert_close(result.own_mask[:, 0], result.images[torch.arange(count), torch.arange(count)])
    torch.testing.assert_close(result.own_weight, shares.diagonal())
    weight = result.own_weight[:, None]
    torch.testing.assert_close(weight * y + (1 - weight) * result.y_partner, result.targets)
    part = {9: np.repeat([0, 1, 2], 3), 5: np.repeat([0, 1], [3, 2])}.get(count, np.zeros(count))
    assert (part[result.partner] == part).all(), "parts stay among themselves"


class Colors(Stub):
    def __init__(self, channels):
        super().__init__()
        with torch.random.fork_rng():
            self.body = nn.Conv2d(channels, 4, 3, padding=1)
        self.module.body = self.body


@settings(max_examples=20)
@given(size=SIZES, seed=SEEDS, blocks=st.sampled_from([2, 4, 8, 16]), levels=st.integers(2, 4))
def test_puzzlemix_moves_blocks_and_counts_pixels(size, seed, blocks, levels):
    x, y, partner, rng = batch(3, size, seed)
    saliency = torch.from_numpy(rng.random((3, *size))).float() ** 8
    draws = {"lam": 0.4, "blocks": blocks, "partner": partner}
    result = PuzzleMix(beta=0.1, n_labels=levels).puzzle(x, y, draws, saliency, x)
    torch.testing.assert_close(result.own_mask.mean((1, 2, 3)), result.own_weight)
    weight = result.own_weight[:, None]
    torch.testing.assert_close(result.targets, weight * y + (1 - weight) * y[partner])
    steps = result.own_mask * (levels - 1)
    torch.testing.assert_close(steps, steps.round())
    # Images of one color each: wherever patches move, the share of the colors is the mask.
    flat = torch.rand(3, 3, 1, 1).expand_as(x).contiguous()
    moved = PuzzleMix(beta=0.1, n_labels=levels).puzzle(flat, y, draws, saliency, x)
    assert torch.equal(moved.own_mask, result.own_mask)
    torch.testing.assert_close(moved.images, result.own_mask * flat + (1 - result.own_mask) * flat[partner])


def test_puzzlemix_brings_saliency_where_the_mask_shows_it():
    x, y, partner, rng = batch(4, (32, 48), 3)
    saliency = torch.from_numpy(rng.random((4, 32, 48))).float() ** 20
    draws = {"lam": 0.5, "blocks": 8, "partner": partner}
    still = PuzzleMix(transport=False, beta=0.01).puzzle(x, y, draws, saliency, x)
    shares = nn.functional.adaptive_avg_pool2d(still.own_mask, 8)[:, 0]
    salient = block_saliency(saliency, 8)
    plan = complete(transport_plan(shares, salient))
    moved = (plan * salient.flatten(1)[:, :, None]).sum(1)
    assert (moved * (shares.flatten(1) > 0)).sum() > (salient * (shares > 0)).sum()


def test_border_differences_of_flat_blocks():
    colors = torch.arange(8.0).reshape(2, 1, 2, 2) ** 2
    pixels = colors.repeat_interleave(6, 2).repeat_interleave(10, 3).expand(2, 3, 12, 20)
    partner = np.array([1, 0])
    for axis, (first, second) in {1: (np.s_[:, :-1], np.s_[:, 1:]), 2: (np.s_[:, :, :-1], np.s_[:, :, 1:])}.items():
        found = border_differences(pixels, partner, 2, 4, axis=axis)
        own, other = colors[:, 0], colors[partner, 0]
        pairs = ((own, own), (own, other), (other, own), (other, other))
        for difference, (a, b) in zip(found, pairs, strict=True):
            torch.testing.assert_close(difference, (a[first] - b[second]).abs())


def test_the_prior_is_binomial():
    np.testing.assert_allclose(np.exp(-log_prior(0.3, 3)), [0.09, 0.42, 0.49], atol=1e-7)
    assert np.isfinite(log_prior(0.0, 4)).all()


@settings(max_examples=30)
@given(size=SIZES, seed=SEEDS, tau=st.floats(0.1, 0.9), share=st.floats(0.1, 1.0), salient=st.booleans())
def test_keepaugment_boxes(size, seed, tau, share, salient):
    rng = np.random.default_rng(seed)
    importance = torch.from_numpy(rng.random((3, *size)) ** 4)
    corners = rng.random((3, 16, 2))
    inside = find_boxes(importance, corners, size=share, tau=tau, salient=salient)
    h, w = (max(int(side * share), 1) for side in size)
    assert (inside.sum((1, 2)) == h * w).all()
    assert (inside.any(2).sum(1) == h).all()
    sums = np.array(
        [
            [item[r : r + h, c : c + w].sum() for r in range(size[0] - h + 1) for c in range(size[1] - w + 1)]
            for item in importance.numpy()
        ]
    )
    np.testing.assert_allclose(box_sums(importance, (h, w)).flatten(1), sums, atol=1e-9)
    places = sums.shape[1]
    tried = (corners * [size[0] - h + 1, size[1] - w + 1]).astype(int)
    for row in range(3):
        limit = np.sort(sums[row])[min(int(tau * places), places - 1)]
        chosen = (importance[row].numpy() * inside[row]).sum()
        offers = [sums[row][r * (size[1] - w + 1) + c] for r, c in tried[row]]
        passing = [value for value in offers if (value > limit + 1e-12 if salient else value < limit - 1e-12)]
        expected = passing[0] if passing else (max(offers) if salient else min(offers))
        assert chosen == pytest.approx(expected)


def test_keepaugment_keeps_labels_when_it_deletes():
    x, y, _, rng = batch(5, (16, 23), 0)
    for options in ({}, {"mode": "paste", "inner": "gridmask: {prob: 1.0}"}):
        strategy = mix.create("keepaugment", **options)
        result = strategy.mix(x, y, strategy.draw(x, rng), STUB)
        assert torch.equal(result.targets, y)
        assert torch.equal(result.own_weight, torch.ones(5))
        holes = result.own_mask == 0
        assert torch.equal(result.images.where(holes, x), result.images), "outside of the holes all is as before"
        assert (result.images * holes == 0).all()


def test_keepaugment_asks_for_what_its_inner_strategy_needs():
    inner = mix.create("tokenmix")
    assert mix.create("keepaugment", mode="paste", inner="tokenmix").wants() == inner.wants()
    assert mix.create("keepaugment", mode="cut", inner="tokenmix").wants() == frozenset()


@pytest.mark.parametrize("inner", ["transmix", "lumix", "smmix", "rmix: {clean: 1.0}"])
def test_keepaugment_refuses_what_it_would_lose(inner):
    strategy = mix.create("keepaugment", mode="paste", inner=inner)
    with pytest.raises(ConfigError, match="labels or a loss of its own"):
        strategy.check(STUB.classifier)


def test_saliency_grafting_by_hand():
    x, y, _, _ = batch(2, (2, 4), 0)
    saliency = torch.tensor([[[[4.0, 0.0], [2.0, 2.0]]], [[[1.0, 1.0], [1.0, 5.0]]]])
    cells = np.array([[[True, True], [False, True]], [[True, False], [True, True]]])
    result = graft(x, y, saliency, {"cells": cells, "partner": np.array([1, 0])})
    mask = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.0], [0.5, 1.0]]])
    assert torch.equal(result.own_mask[:, 0], mask.repeat_interleave(2, 2))
    own = [np.sqrt(20 / 24), np.sqrt((0.5 + 0.5 + 25) / 28)]
    other = [np.sqrt(2 / 28), np.sqrt((8 + 0 + 2) / 24)]
    for row in range(2):
        share = own[row] / (own[row] + other[row])
        expected = share * y[row] + (1 - share) * y[1 - row]
        torch.testing.assert_close(result.targets[row], expected.float())
    torch.testing.assert_close(result.own_weight, mask.mean((1, 2)))


def test_importance_is_a_share():
    saliency = torch.rand(3, 1, 4, 4)
    torch.testing.assert_close(importance(saliency, torch.ones(3, 1, 4, 4)), torch.ones(3))
    assert torch.equal(importance(saliency, torch.zeros(3, 1, 4, 4)), torch.zeros(3))
    assert torch.equal(importance(saliency * 0, torch.ones(3, 1, 4, 4)), torch.zeros(3))


def test_no_saliency_at_all_falls_back_to_the_pixels():
    x, y, partner, _ = batch(3, (8, 8), 0)
    draws = {"cells": np.ones((3, 4, 4), bool), "partner": partner}
    result = graft(x, y, torch.zeros(3, 1, 4, 4), draws)
    weight = result.own_weight[:, None]
    torch.testing.assert_close(result.targets, weight * y + (1 - weight) * y[partner])
