"""Mix strategies against their definitions, pixel by pixel, on odd non-square batches."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsol import mix
from wsol.errors import ConfigError
from wsol.mix.cutmix import cut_box

NAMES = ("none", "mixup", "cutmix")


def batch(count=5, size=(9, 14), classes=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, *size, generator=generator)
    y = torch.zeros(count, classes)
    y[torch.arange(count), torch.arange(count) % classes] = 1.0
    return x, y


def mixed_by(strategy, x, y, seed=0):
    draws = strategy.draw(x, np.random.default_rng(seed))
    return strategy.mix(x, y, draws), draws


def test_registry_lists_the_three_without_importing_torch():
    assert set(NAMES) <= set(mix.MIXES.names())
    code = "from wsol import mix; [mix.create(n) for n in mix.MIXES.names()]; import sys; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cutmux", {}, "did you mean 'cutmix'"),
        ("mixup", {"alhpa": 1.0}, "did you mean 'alpha'"),
        ("mixup", {"alpha": 0.0}, "alpha must be positive"),
        ("mixup", {"alpha": float("inf")}, "alpha must be positive and finite"),
        ("cutmix", {"prob": 1.5}, r"prob must lie in \[0, 1\]"),
        ("cutmix", {"box": "round"}, "cannot be 'round'"),
    ],
)
def test_mistakes_are_named(name, options, message):
    with pytest.raises(ConfigError, match=message):
        mix.create(name, **options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("partner", ["flip", "perm"])
@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 5),
    size=st.tuples(st.integers(1, 13), st.integers(1, 17)),
    seed=st.integers(0, 10_000),
)
def test_properties(name, partner, count, size, seed):
    strategy = mix.create(name, **({} if name == "none" else {"partner": partner}))
    x, y = batch(count, size, seed=seed)
    before_x, before_y, state = x.clone(), y.clone(), torch.get_rng_state()
    result, draws = mixed_by(strategy, x, y, seed)
    again = strategy.mix(x, y, draws)
    assert torch.equal(x, before_x), "the caller's tensors stay as they are"
    assert torch.equal(y, before_y)
    assert torch.equal(state, torch.get_rng_state()), "no draw outside of the generator"
    assert torch.equal(result.images, again.images)
    assert torch.equal(result.targets, again.targets)
    assert sorted(result.partner.tolist()) == list(range(count))
    assert torch.equal(result.y_partner, y[result.partner])
    assert result.own_mask.shape == (count, 1, *size)
    torch.testing.assert_close(result.own_mask.mean(dim=(1, 2, 3)), result.own_weight)
    torch.testing.assert_close(result.targets.sum(dim=1), torch.ones(count))
    # Whatever the strategy, the mask says where each pixel comes from.
    other = x[result.partner]
    torch.testing.assert_close(result.images, result.own_mask * x + (1 - result.own_mask) * other)
    weight = result.own_weight[:, None]
    torch.testing.assert_close(result.targets, weight * y + (1 - weight) * result.y_partner)


def test_none_changes_nothing():
    x, y = batch()
    result, _ = mixed_by(mix.create("none"), x, y)
    assert torch.equal(result.images, x)
    assert torch.equal(result.targets, y)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_prob_is_the_share_of_mixed_batches(name):
    x, y = batch(4)
    strategy, generator = mix.create(name, prob=0.3, partner="flip"), np.random.default_rng(0)
    draws = [strategy.draw(x, generator) for _ in range(2000)]
    assert np.mean([draw["lam"] < 1.0 for draw in draws]) == pytest.approx(0.3, abs=0.03)
    off = mix.create(name, prob=0.0)
    assert torch.equal(mixed_by(off, x, y)[0].images, x)


def test_alpha_shapes_lambda():
    x, _ = batch(2)
    for alpha in (0.2, 1.0, 5.0):
        generator = np.random.default_rng(1)
        strategy = mix.create("mixup", alpha=alpha)
        values = np.array([strategy.draw(x, generator)["lam"] for _ in range(4000)])
        assert values.mean() == pytest.approx(0.5, abs=0.02)
        assert values.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.01)


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    lam=st.floats(0, 1),
    where=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
)
def test_box_by_counting_pixels(size, lam, where):
    centre = tuple(int(side * share) for side, share in zip(size, where, strict=True))
    for rule in ("clovaai", "timm"):
        top, left, bottom, right = cut_box(size, lam, centre, rule=rule)
        for low, high, middle, side in ((top, bottom, centre[0], size[0]), (left, right, centre[1], size[1])):
            cut = int(side * np.sqrt(1 - lam))
            end = cut - cut // 2 if rule == "timm" else cut // 2
            inside = [at for at in range(side) if -(cut // 2) <= at - middle < end]
            assert list(range(low, high)) == inside


def test_multi_label_targets_mix_linearly():
    x, _ = batch(3)
    y = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1]])
    result, draws = mixed_by(mix.create("mixup", partner="flip"), x, y)
    lam = draws["lam"]
    torch.testing.assert_close(result.targets, y * lam + y.flip(0) * (1 - lam))
