"""Losses against timm, torch and their formulas."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.loss import AsymmetricLossMultiLabel

from wsol.engine.losses import asymmetric_loss, class_weights, loss_name, make_criterion, smooth
from wsol.engine.train_options import TrainConfig
from wsol.errors import ConfigError
from wsol.schema import Sample


def config(**changes):
    return TrainConfig(data="none", out=Path("none"), model="none", **changes)


def batch(count=5, classes=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator) * 4
    return logits, (torch.rand(count, classes, generator=generator) < 0.3).float()


@pytest.mark.parametrize("gamma", [(0.0, 4.0), (1.0, 4.0), (0.0, 0.0), (2.0, 2.0)])
@pytest.mark.parametrize("margin", [0.0, 0.05, 0.2])
def test_asymmetric_loss_equals_timms(gamma, margin):
    logits, targets = batch()
    known = inspect.signature(AsymmetricLossMultiLabel).parameters
    summed = {"reduction": "sum"} if "reduction" in known else {}  # older versions always add up
    peer = AsymmetricLossMultiLabel(gamma_pos=gamma[0], gamma_neg=gamma[1], clip=margin, eps=1e-12, **summed)
    expected = peer(logits.double(), targets.double()) / targets.numel()
    found = asymmetric_loss(logits.double(), targets.double(), gamma=gamma, margin=margin)
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-5)


def test_asymmetric_loss_without_focus_is_bce_and_linear_in_the_targets():
    logits, targets = batch()
    plain = asymmetric_loss(logits, targets, gamma=(0.0, 0.0), margin=0.0)
    torch.testing.assert_close(plain, F.binary_cross_entropy_with_logits(logits, targets), rtol=1e-4, atol=1e-5)
    other = 1 - targets
    mixed = asymmetric_loss(logits, 0.3 * targets + 0.7 * other)
    torch.testing.assert_close(mixed, 0.3 * asymmetric_loss(logits, targets) + 0.7 * asymmetric_loss(logits, other))


@pytest.mark.parametrize("gamma", [(0.0, 4.0), (0.5, 0.5)])
def test_extreme_logits_have_finite_gradients(gamma):
    logits = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    for targets in (torch.zeros(1, 3), torch.ones(1, 3)):
        (gradient,) = torch.autograd.grad(asymmetric_loss(logits, targets, gamma=gamma), logits)
        assert torch.isfinite(gradient).all()


def test_bce_is_multi_label_soft_margin():
    logits, targets = batch()
    found = make_criterion("bce", config())(logits, targets)
    torch.testing.assert_close(found, torch.nn.MultiLabelSoftMarginLoss()(logits, targets))


@pytest.mark.parametrize("name", ["ce", "bce", "asl"])
def test_class_weights_multiply_the_terms_of_a_class(name):
    logits, targets = batch()
    weights = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0, 0.1, 0.4])
    found = make_criterion(name, config(), weights=weights)(logits, targets)
    by_class = []
    for at in range(7):
        only = torch.zeros(7)
        only[at] = 1.0
        by_class.append(make_criterion(name, config(), weights=only)(logits, targets))
    torch.testing.assert_close(found, (torch.stack(by_class) * weights).sum())
    ones = make_criterion(name, config(), weights=torch.ones(7))(logits, targets)
    torch.testing.assert_close(ones, make_criterion(name, config())(logits, targets))


def test_weights_by_effective_numbers():
    labels = [(0,)] * 90 + [(1,)] * 9 + [(0, 1)] * 10 + [(1, 1)]
    samples = [Sample(id=str(at), image=Path("x"), labels=item) for at, item in enumerate(labels)]
    found = class_weights(samples, 3, beta=0.99)
    raw = np.array([0.01 / (1 - 0.99**count) for count in (100, 20, 1)])
    np.testing.assert_allclose(found, raw / raw.mean(), rtol=1e-6)
    np.testing.assert_allclose(class_weights(samples, 3, beta=0.0), 1.0)


def test_names_of_losses():
    assert loss_name(config(), multi_label=True) == "bce"
    assert loss_name(config(), multi_label=False) == "ce"
    assert loss_name(config(loss="asl"), multi_label=False) == "asl"
    with pytest.raises(ConfigError, match="one label an image"):
        loss_name(config(loss="ce"), multi_label=True)


def test_smoothing():
    y = torch.tensor([[1.0, 0, 0, 0]])
    torch.testing.assert_close(smooth(y, 0.1, multi_label=False), torch.tensor([[0.925, 0.025, 0.025, 0.025]]))
    torch.testing.assert_close(smooth(y, 0.1, multi_label=True), torch.tensor([[0.95, 0.05, 0.05, 0.05]]))
