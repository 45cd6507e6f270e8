"""Strategies that hide parts of images, against their definitions on odd non-square batches."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsol import mix
from wsol.errors import ConfigError
from wsol.mix import Context
from wsol.mix.gridmask import squares
from wsol.mix.random_erasing import erased_sides

NAMES = ("cutout", "random_erasing", "hide_and_seek", "gridmask")
OPTIONS = {"hide_and_seek": {"cells": (0, 3, 5)}}


def batch(count=5, size=(21, 34), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *size, generator=generator), torch.eye(6)[:count]


def mixed_by(strategy, x, y, seed=0, context=None):
    return strategy.mix(x, y, strategy.draw(x, np.random.default_rng(seed)), context)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(count=st.integers(1, 5), size=st.tuples(st.integers(1, 23), st.integers(1, 31)), seed=st.integers(0, 10_000))
def test_properties(name, count, size, seed):
    strategy, (x, y) = mix.create(name, **OPTIONS.get(name, {})), batch(count, size, seed)
    before, state = x.clone(), torch.get_rng_state()
    draws = strategy.draw(x, np.random.default_rng(seed))
    result = strategy.mix(x, y, draws)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(result.images, strategy.mix(x, y, draws).images)
    assert result.own_mask.shape == (count, 1, *size)
    assert set(result.own_mask.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(result.images, x * result.own_mask), "holes are 0, the rest is as it was"
    for labels in (result.targets, result.y_own, result.y_partner):
        assert torch.equal(labels, y)
    assert torch.equal(result.own_weight, torch.ones(count))
    assert result.partner.tolist() == list(range(count))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cutout", {"length": 1.5}, r"length must lie in \[0, 1\]"),
        ("cutout", {"holes": 0}, "holes must be 1 or more"),
        ("random_erasing", {"area": (0.5, 0.1)}, "area must be a range"),
        ("random_erasing", {"min_aspect": 0.0}, "min_aspect must lie"),
        ("hide_and_seek", {"cells": ()}, "cells must be 0 or more"),
        ("hide_and_seek", {"drop": 2.0}, "drop must lie"),
        ("gridmask", {"keep": -1.0}, "keep must lie"),
        ("gridmask", {"rotate": 0}, "rotate must be 1 or more"),
    ],
)
def test_mistakes_are_named(name, options, message):
    with pytest.raises(ConfigError, match=message):
        mix.create(name, **options)


def test_cutout_by_counting_pixels():
    x, y = batch(4)
    strategy = mix.create("cutout", holes=2, length=0.5)
    draws = strategy.draw(x, np.random.default_rng(1))
    result = strategy.mix(x, y, draws)
    half = round(21 * 0.5) // 2
    for image, centres in zip(result.own_mask[:, 0].numpy(), draws["centre"], strict=True):
        for row, column in itertools.product(range(21), range(34)):
            hidden = any(-half <= row - r < half and -half <= column - c < half for r, c in centres)
            assert image[row, column] == (not hidden)


@pytest.mark.parametrize(("side", "pixels"), [(32, 8), (44, 30), (45, 26)])
def test_cutout_of_a_whole_number_of_pixels(side, pixels):
    """30 / 44 of 44 is a little less than 30 in floating point."""
    x, y = torch.ones(1, 3, side, side), torch.ones(1, 1)
    centre = np.array([[[side // 2, side // 2]]])
    result = mix.create("cutout", length=pixels / side).mix(x, y, {"centre": centre})
    assert (result.own_mask == 0).sum() == pixels**2


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), aspect=st.sampled_from(["uniform", "log"]))
def test_erased_rectangles(seed, aspect):
    x, y = batch(6)
    result = mixed_by(mix.create("random_erasing", prob=1.0, aspect=aspect), x, y, seed)
    for image in 1 - result.own_mask[:, 0]:
        rows, columns = image.amax(1).sum(), image.amax(0).sum()
        assert image.sum() == rows * columns, "one rectangle"
        share = float(image.sum()) / image.numel()
        assert 0.02 - 0.02 <= share <= 0.4 + 0.05, "area within its range, up to rounding of the sides"


def test_erased_sides():
    assert erased_sides((100, 50), 0.1, 1.0) == (22, 22)
    height, width = erased_sides((300, 400), 0.2, 3.0)
    assert height / width == pytest.approx(3.0, rel=0.01)
    assert height * width == pytest.approx(0.2 * 300 * 400, rel=0.01)


@pytest.mark.parametrize("fill", ["color", "pixel"])
def test_random_erasing_fills(fill):
    x, y = batch(40)
    result = mixed_by(mix.create("random_erasing", prob=1.0, fill=fill), x, y)
    holes = (result.own_mask == 0).expand_as(x)
    noise = result.images[holes]
    assert abs(noise.mean()) < 0.15
    assert noise.std() == pytest.approx(1.0, abs=0.15)
    first = result.images[0, 0][holes[0, 0]]
    assert (first.unique().numel() == 1) == (fill == "color")
    assert torch.equal(result.images[~holes], x[~holes])


def test_the_share_of_erased_images():
    x, y = batch(600, (8, 9))
    y = torch.ones(600, 1)
    result = mixed_by(mix.create("random_erasing", prob=0.25, area=(0.2, 0.4)), x, y)
    assert (result.own_mask.amin((1, 2, 3)) == 0).float().mean() == pytest.approx(0.25, abs=0.06)


def test_hidden_cells_are_whole_and_as_many_as_said():
    x, y = batch(60)
    y = torch.ones(60, 1)
    strategy = mix.create("hide_and_seek", cells=(4,), drop=0.3)
    mask = mixed_by(strategy, x, y).own_mask[:, 0].numpy()
    shares = []
    for image in mask:
        for row, column in itertools.product(range(0, 21, 4), range(0, 34, 4)):
            cell = image[row : row + 4, column : column + 4]
            assert cell.min() == cell.max()
            shares.append(cell.min() == 0)
    assert np.mean(shares) == pytest.approx(0.3, abs=0.03)
    assert mixed_by(mix.create("hide_and_seek", cells=(0,)), x, y).own_mask.min() == 1


@given(
    size=st.tuples(st.integers(3, 30), st.integers(3, 30)),
    distance=st.integers(2, 20),
    offset=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
    keep=st.floats(0, 1),
)
def test_squares_by_counting(size, distance, offset, keep):
    start = tuple(int(share * distance) for share in offset)
    hidden = squares(size, distance, start, angle=0, keep=keep)
    side = int(np.ceil(np.sqrt(size[0] ** 2 + size[1] ** 2)))
    between = int(np.ceil(distance * keep))
    kept = np.zeros((side, side), dtype=bool)
    for at in range(-1, side // distance + 1):
        kept[max(at * distance + start[0], 0) : max(at * distance + start[0] + between, 0)] = True
        kept[:, max(at * distance + start[1], 0) : max(at * distance + start[1] + between, 0)] = True
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    assert np.array_equal(hidden, ~kept[top : top + size[0], left : left + size[1]])


def test_gridmask_hides_more_often_later():
    x, y = batch(400, (12, 15))
    y = torch.ones(400, 1)
    strategy = mix.create("gridmask", prob=0.8, rise=0.5, distance=(0.3, 0.5))
    context, shares = Context(None, None, epochs=20), []
    for epoch in (0, 5, 10, 19):
        result = mixed_by(strategy, x, y, context=replace(context, epoch=epoch))
        shares.append(float((result.own_mask.amin((1, 2, 3)) == 0).float().mean()))
    assert shares[0] == 0
    assert shares[1] == pytest.approx(0.4, abs=0.08)
    assert shares[2] == shares[3] == pytest.approx(0.8, abs=0.08)
    always = mixed_by(replace(strategy, rise=0.0), x, y, context=context)
    assert torch.equal(always.images, mixed_by(strategy, x, y).images), "without a rise, or a training, the full share"
