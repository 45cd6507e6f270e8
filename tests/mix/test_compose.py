"""Strategies made of strategies: choice, until, and strategies written as text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from wsol import mix
from wsol.errors import ConfigError
from wsol.mix import Context
from wsol.mix._compose import OneOf
from wsol.mix.cutmix import CutMix
from wsol.mix.mixup import Mixup
from wsol.mix.none import Unmixed


def batch(count=5, size=(9, 14), classes=6):
    x = torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(0))
    return x, torch.eye(classes)[:count]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cutmix", CutMix()),
        ("none", Unmixed()),
        ("cutmix: {alpha: 0.5, partner: flip}", CutMix(alpha=0.5, partner="flip")),
        ("mixup:", Mixup()),
    ],
)
def test_strategies_as_text(text, expected):
    assert mix.from_text(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cutmux", "did you mean 'cutmix'"),
        ("cutmix: {alhpa: 1}", "did you mean 'alpha'"),
        ("[cutmix, mixup]", "expected one strategy"),
        ("{cutmix: {}, mixup: {}}", "expected one strategy"),
        ("cutmix: 3", "expected options"),
        ("cutmix: {1: 2}", "expected options"),
        ("cutmix: {", "not YAML"),
        ("[" * 5000, "not YAML"),
        ("hat", "replaces the whole step"),
    ],
)
def test_mistakes_in_the_text(text, message):
    with pytest.raises(ConfigError, match=message):
        mix.from_text(text)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("choice", {"strategies": []}, "no strategies"),
        ("choice", {"weights": [1.0]}, "one weight a strategy"),
        ("choice", {"weights": [0.0, 0.0]}, "not all 0"),
        ("choice", {"weights": [-1.0, 2.0]}, "0 or more"),
        ("choice", {"strategies": ["cutmux"]}, "did you mean 'cutmix'"),
        ("until", {"epochs": -1}, "0 or more"),
        ("until", {"inner": "cutmux"}, "did you mean 'cutmix'"),
    ],
)
def test_mistakes_in_the_options(name, options, message):
    with pytest.raises(ConfigError, match=message):
        mix.create(name, **options)


def test_a_choice_is_exactly_one_of_its_parts():
    x, y = batch()
    strategy = mix.create("choice", strategies=["mixup: {alpha: 0.8}", "cutmix", "none"], weights=[1, 2, 1])
    generator, seen = np.random.default_rng(0), []
    for _ in range(400):
        draws = strategy.draw(x, generator)
        at = draws["choice"]
        seen.append(at)
        found, expected = strategy.mix(x, y, draws), strategy.parts[at].mix(x, y, draws["parts"][at])
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.targets, expected.targets)
    np.testing.assert_allclose(np.bincount(seen) / 400, [0.25, 0.5, 0.25], atol=0.07)


def test_until_stops_after_its_epochs():
    x, y = batch()
    strategy = mix.create("until", inner="mixup", epochs=2)
    draws = strategy.draw(x, np.random.default_rng(0))
    for epoch, mixes in enumerate([True, True, False, False]):
        images = strategy.mix(x, y, draws, Context(None, None, epoch=epoch)).images
        assert torch.equal(images, x) != mixes


def test_they_nest():
    x, y = batch()
    inner = "choice: {strategies: ['until: {inner: cutmix, epochs: 1}', 'transmix: {inner: cutmix}'], weights: [1, 0]}"
    strategy = mix.from_text(inner)
    draws = strategy.draw(x, np.random.default_rng(0))
    assert not torch.equal(strategy.mix(x, y, draws, Context(None, None)).images, x)
    assert torch.equal(strategy.mix(x, y, draws, Context(None, None, epoch=1)).images, x)
    assert strategy.wants() == {"attention"}


@dataclass(frozen=True)
class Counting(Unmixed):
    """Counts its steps in a module of its own."""

    def own(self, classifier):
        module = nn.Linear(1, 1)
        module.register_buffer("steps", torch.zeros(()))
        return module

    def loss(self, mixed, output, context):
        return context.own(torch.ones(1, 1)).sum()

    def after_step(self, context):
        context.own.steps += 1


class Two(OneOf):
    parts = (Unmixed(), Counting())

    def draw(self, x, generator):
        return {"parts": [{}, {}]}

    def choose(self, draws, context):
        return 1


def test_each_part_sees_its_own_state():
    x, y = batch()
    strategy = Two()
    own = strategy.own(None)
    assert list(own.state_dict()) == ["1.weight", "1.bias", "1.steps"]
    context = Context(None, None, own=own)
    mixed = strategy.mix(x, y, strategy.draw(x, np.random.default_rng(0)), context)
    strategy.loss(mixed, None, context).backward()
    assert own["1"].weight.grad is not None
    strategy.after_step(context)
    assert own["1"].steps == 1
