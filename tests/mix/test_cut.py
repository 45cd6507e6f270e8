"""Strategies that cut and paste, against their definitions on odd non-square batches."""

from __future__ import annotations

import itertools
import math

import cv2
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

from wsol import mix
from wsol.errors import ConfigError
from wsol.mix import Context
from wsol.mix._fine_grained import centre_surround, fine_grained_saliency
from wsol.mix.attentive_cutmix import attended
from wsol.mix.fmix import low_frequencies, top_share
from wsol.mix.gridmix import grid
from wsol.mix.saliencymix import salient_pixel
from wsol.models.classifier import Classifier

SIZE = (48, 64)
STRATEGIES = {
    "mixup of pairs": ("mixup", {"mode": "pair"}),
    "mixup of images": ("mixup", {"mode": "elem"}),
    "cutmix of pairs": ("cutmix", {"mode": "pair", "box": "timm"}),
    "cutmix of images": ("cutmix", {"mode": "elem"}),
    "cutmix between sizes": ("cutmix", {"minmax": (0.2, 0.8)}),
    "cutmix between sizes, of images": ("cutmix", {"minmax": (0.2, 0.8), "mode": "elem"}),
    "fmix": ("fmix", {}),
    "fmix of the paper": ("fmix", {"compat": False}),
    "soft fmix": ("fmix", {"max_soft": 0.2}),
    "gridmix": ("gridmix", {}),
    "smoothmix": ("smoothmix", {}),
    "saliencymix": ("saliencymix", {}),
}


def batch(count=5, size=(9, 14), classes=6, seed=0):
    x = torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))
    return x, torch.eye(classes)[torch.arange(count) % classes]


def mixed_by(strategy, x, y, seed=0, context=None):
    return strategy.mix(x, y, strategy.draw(x, np.random.default_rng(seed)), context)


def vit(**changes):
    options = {"img_size": SIZE, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 6}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(VisionTransformer(**(options | changes)), name="vit", input_size=SIZE)


def resnet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(timm.create_model("test_resnet", num_classes=6), name="resnet", input_size=SIZE)


@pytest.mark.parametrize("case", STRATEGIES)
@settings(max_examples=25)
@given(count=st.integers(1, 6), size=st.tuples(st.integers(1, 19), st.integers(1, 23)), seed=st.integers(0, 10_000))
def test_properties(case, count, size, seed):
    name, options = STRATEGIES[case]
    strategy, (x, y) = mix.create(name, **options), batch(count, size, seed=seed)
    before, state = x.clone(), torch.get_rng_state()
    draws = strategy.draw(x, np.random.default_rng(seed))
    result = strategy.mix(x, y, draws)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    again = strategy.mix(x, y, draws)
    assert torch.equal(result.images, again.images)
    assert torch.equal(result.targets, again.targets)
    assert sorted(result.partner.tolist()) == list(range(count))
    assert torch.equal(result.y_partner, y[result.partner])
    share, weight = result.own_mask, result.own_weight
    assert share.shape == (count, 1, *size)
    assert 0 <= share.min() <= share.max() <= 1
    torch.testing.assert_close(result.images, share * x + (1 - share) * x[result.partner])
    # FMix counts whole pixels towards a share; a soft border shifts that by rounding only.
    slack = 1.5 / (size[0] * size[1]) if name == "fmix" else 1e-6
    torch.testing.assert_close(share.mean(dim=(1, 2, 3)), weight, atol=slack, rtol=0)
    torch.testing.assert_close(result.targets, weight[:, None] * y + (1 - weight[:, None]) * result.y_partner)


@pytest.mark.parametrize("case", [*STRATEGIES, "resizemix", "attentive_cutmix"])
def test_without_probability_nothing_is_mixed(case):
    name, options = STRATEGIES.get(case, (case, {}))
    x, y = batch()
    result = mixed_by(mix.create(name, prob=0.0, **options), x, y)
    assert torch.equal(result.images, x)
    assert torch.equal(result.targets, y)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cutmix", {"minmax": (0.8, 0.2)}, "minmax must be a range"),
        ("cutmix", {"mode": "image"}, "cannot be 'image'"),
        ("resizemix", {"scale": (0.1, 1.8)}, "scale must be a range"),
        ("gridmix", {"cells": (0, 2)}, "cells must be a range"),
        ("gridmix", {"aspect": (0.0, 2.0)}, "aspect must be a range"),
        ("smoothmix", {"sigma": (0.0, 0.5)}, "sigma must be a range"),
        ("fmix", {"max_soft": 2.0}, "max_soft must lie"),
        ("fmix", {"decay": -1.0}, "decay must be 0 or more"),
        ("manifold_mixup", {"stages": 5}, "stages must lie"),
        ("recursivemix", {"omega": -1.0}, "omega must be 0 or more"),
        ("attentive_cutmix", {"share": 7.0}, "share must lie"),
    ],
)
def test_mistakes_are_named(name, options, message):
    with pytest.raises(ConfigError, match=message):
        mix.create(name, **options)


@pytest.mark.parametrize("count", [4, 5])
def test_modes_share_draws(count):
    x, y = batch(count, (40, 50))
    for name in ("mixup", "cutmix"):
        weights = {}
        for mode in ("batch", "pair", "elem"):
            weights[mode] = mixed_by(mix.create(name, mode=mode, partner="flip"), x, y, 3).own_weight
        assert len(set(weights["batch"].tolist())) == 1
        assert torch.equal(weights["pair"], weights["pair"].flip(0))
        assert len(set(weights["pair"].tolist())) == (count + 1) // 2
        assert len(set(weights["elem"].tolist())) == count


@given(size=st.tuples(st.integers(4, 40), st.integers(4, 40)), seed=st.integers(0, 1000))
def test_boxes_between_two_sizes_lie_inside(size, seed):
    x = torch.zeros(3, 1, *size)
    draws = mix.create("cutmix", minmax=(0.25, 0.75), mode="elem").draw(x, np.random.default_rng(seed))
    for top, left, bottom, right in draws["box"]:
        assert 0 <= top <= bottom <= size[0]
        assert 0 <= left <= right <= size[1]
        assert int(size[0] * 0.25) <= bottom - top <= size[0] * 0.75
        assert int(size[1] * 0.25) <= right - left <= size[1] * 0.75


@settings(max_examples=40)
@given(size=st.tuples(st.integers(2, 25), st.integers(2, 31)), seed=st.integers(0, 10_000))
def test_resizemix_shows_the_whole_partner(size, seed):
    x, y = batch(3, size, seed=seed)
    result = mixed_by(mix.create("resizemix"), x, y, seed)
    torch.testing.assert_close(result.own_mask.mean((1, 2, 3)), result.own_weight)
    rows, columns = (1 - result.own_mask[0, 0]).amax(1).nonzero()[:, 0], (1 - result.own_mask[0, 0]).amax(0).nonzero()
    keep = result.own_mask.bool().expand_as(x)
    assert torch.equal(result.images[keep], x[keep])
    height, width = len(rows), len(columns)
    for i, j in itertools.product(range(height), range(width)):
        source = x[result.partner, :, i * size[0] // height, j * size[1] // width]
        assert torch.equal(result.images[:, :, rows[0] + i, columns[0, 0] + j], source)


def test_smoothmix_by_the_formula():
    size = (7, 11)
    x, y = batch(2, size)
    draws = {"centre": (2, 8), "sigma": 0.3, "partner": np.array([1, 0])}
    mask = mix.create("smoothmix").mix(x, y, draws).own_mask[0, 0]
    for row, column in itertools.product(range(7), range(11)):
        squares = ((row + 0.5 - 2) / (0.3 * 7)) ** 2 + ((column + 0.5 - 8) / (0.3 * 11)) ** 2
        assert mask[row, column] == pytest.approx(1 - math.exp(-squares / 2), abs=1e-6)


@given(
    size=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    lam=st.floats(0, 0.99),
    cells=st.integers(1, 6),
    area=st.floats(0.2, 1.0),
    aspect=st.floats(0.5, 2.0),
    place=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
)
def test_gridmix_patch_by_patch(size, lam, cells, area, aspect, place):
    width = int(math.sqrt(int(size[0] * size[1] * area) / aspect))
    height = int(width * aspect)
    top, left = int((size[0] - height) * place[0]), int((size[1] - width) * place[1])
    cell = math.ceil(width / min(cells, width // 2))
    patch = min(max(int(cell * math.sqrt(1 - lam)), 1), cell - 1)
    expected = np.zeros(size, dtype=bool)
    for i, j in itertools.product(range(height // cell + 1), range(width // cell + 1)):
        row, column = top + i * cell, left + j * cell
        bottom, right = min(row + patch, top + height), min(column + patch, left + width)
        expected[row:bottom, column:right] = True  # below 0 counts from the other border, as in OpenMixup's code
    assert np.array_equal(grid(size, lam, cells=cells, area=area, aspect=aspect, place=place), expected)


@pytest.mark.parametrize("size", [(12, 16), (13, 17), (9, 20)])
def test_the_spectrum_of_fmix(size):
    noise = np.random.default_rng(0).standard_normal((size[0], size[1] // 2 + 1 + size[1] % 2, 2))
    grey = low_frequencies(noise, size, decay=2.0, compat=False)
    assert grey.min() == 0
    assert grey.max() == 1
    found = np.fft.rfft2(grey)[:, 1 : (size[1] - 1) // 2]
    rows, columns = np.meshgrid(np.fft.fftfreq(size[0]), np.fft.rfftfreq(size[1]), indexing="ij")
    frequency = np.sqrt(rows**2 + columns**2)[:, 1 : (size[1] - 1) // 2]
    expected = (noise[..., 0] + 1j * noise[..., 1])[:, 1 : (size[1] - 1) // 2] / np.maximum(
        frequency, 1 / max(size)
    ) ** 2
    ratio = found / expected
    np.testing.assert_allclose(ratio, ratio[0, 0].real, rtol=1e-6)


@given(lam=st.floats(0, 1), up=st.booleans(), seed=st.integers(0, 1000))
def test_the_brightest_pixels(lam, up, seed):
    grey = np.random.default_rng(seed).random((7, 9))
    mask = top_share(grey, lam, up=up)
    count = math.ceil(lam * 63) if up else math.floor(lam * 63)
    assert mask.sum() == count
    if 0 < count < 63:
        assert grey[mask == 1].min() > grey[mask == 0].max()


def test_centre_surround_by_summing_windows():
    values = np.random.default_rng(0).integers(0, 256, (31, 43)).astype(float)
    on, off = np.zeros_like(values), np.zeros_like(values)
    for (row, column), value in np.ndenumerate(values):
        for reach in (12, 24, 48, 28, 56, 112):
            rows = slice(max(row - reach + 1, 0), row + reach + 1)
            window = values[rows, max(column - reach + 1, 0) : column + reach + 1]
            contrast = value - (window.sum() - value) / (window.size - 1)
            on[row, column] += int(max(contrast, 0))
            off[row, column] += int(max(-contrast, 0))
    on, off = np.floor(255 * on / on.max()), np.floor(255 * off / off.max())
    expected = np.floor(255 * (on + off) / 255)
    np.testing.assert_allclose(centre_surround(values, cv2.integral(values)), expected, atol=1)


def test_a_spot_is_salient():
    image = np.full((60, 90, 3), 90, dtype=np.uint8)
    image[40:46, 20:26] = 250
    row, column = divmod(int(fine_grained_saliency(image).argmax()), 90)
    assert 39 <= row <= 46
    assert 19 <= column <= 26
    tensor = torch.from_numpy(image).permute(2, 0, 1) / 127.5 - 1
    assert salient_pixel(tensor) == (row, column), "the range of the values does not count"
    assert salient_pixel(torch.zeros(3, 5, 4)) == (0, 0)
    x = torch.stack([torch.zeros_like(tensor), tensor])
    draws = {"lam": 0.96, "partner": np.array([1, 0])}
    result = mix.create("saliencymix").mix(x, torch.eye(2), draws)
    assert result.own_mask[0, 0, row, column] == 0, "the box lies on the spot of the first partner"
    assert result.own_mask.mean() > 0.9


@pytest.mark.parametrize("network", [vit, resnet])
def test_attentive_cutmix_keeps_what_the_network_attends_to(network):
    classifier, (x, y) = network(), batch(5, (48, 64))
    classifier.module.train()
    before = {key: value.clone() for key, value in classifier.module.state_dict().items()}
    context = Context(classifier, F.cross_entropy)
    result = mixed_by(mix.create("attentive_cutmix", share=0.25), x, y, context=context)
    assert all(layer.training for layer in classifier.module.modules())
    assert all(torch.equal(before[key], value) for key, value in classifier.module.state_dict().items())
    keep = result.own_mask.bool().expand_as(x)
    assert torch.equal(result.images[keep], x[keep])
    assert torch.equal(result.images[~keep], x[result.partner][~keep])
    torch.testing.assert_close(result.own_weight, result.own_mask.mean((1, 2, 3)))
    classifier.module.eval()
    with torch.no_grad():
        means = classifier.to_grid(classifier.module.forward_features(x), 48, 64).mean(1)
    for mean, mask in zip(means, result.own_mask[:, 0], strict=True):
        chosen = F.interpolate(mask[None, None], mean.shape, mode="nearest")[0, 0].bool()
        assert int(chosen.sum()) == max(1, round(0.25 * mean.numel()))
        assert chosen.all() or mean[chosen].min() >= mean[~chosen].max()


def test_attentive_cutmix_needs_a_model():
    with pytest.raises(ConfigError, match="needs the model"):
        mixed_by(mix.create("attentive_cutmix"), *batch())


def test_attended_cells_on_odd_grids():
    features = torch.zeros(2, 3, 3, 5)
    features[0, :, 1, 4], features[1, :, 0, 0] = 1.0, 1.0
    mask = attended(features, (10, 17), share=0.01)
    assert mask[0, 0].nonzero().min(0).values.tolist() == [4, 14]
    assert mask[1, 0].nonzero().max(0).values.tolist() == [3, 3]
