"""A linear head on frozen features."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wsol.engine.linear_probe import fit_head, pooled_features
from wsol.errors import ModelError
from wsol.models.classifier import load_classifier


def features(count=60, width=32, classes=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, width, generator=generator) * torch.logspace(-2, 1, width) + 3
    x[:, 5] = 0.7  # a dead channel
    y = (torch.rand(count, classes, generator=generator) < 0.4).float()
    y[:, 0] = (x[:, 0] > 3).float()
    return x, y


@pytest.fixture
def classifier():
    known = load_classifier("test_resnet", num_classes=3)
    known.module.fc = nn.Linear(32, 3)
    return known


@pytest.mark.parametrize("loss", ["bce", "ce"])
def test_the_gradient_vanishes_at_the_solution(classifier, loss):
    x, y = features()
    if loss == "ce":
        y = y / y.sum(1, keepdim=True).clamp(min=1) + (y.sum(1, keepdim=True) == 0) / 3
    fit_head(classifier, [(x[:25], y[:25]), (x[25:], y[25:])], loss=loss, weight_decay=0.1)
    # In the coordinates of the head's own input: gradient of the loss + decay * weight * deviation^2 = 0.
    deviation = x.double().std(0, correction=0)
    alive = deviation > 0.01 * deviation.mean()
    weight, bias = classifier.head.weight.double(), classifier.head.bias.double()
    scores = x.double() @ weight.T + bias
    probability = scores.sigmoid() if loss == "bce" else scores.softmax(1)
    centred = x.double() - x.double().mean(0)
    gradient = (probability - y).T @ centred / len(x) + 0.1 * weight * deviation**2
    assert gradient[:, alive].abs().max() < 1e-4 * deviation.max()
    assert (probability - y).mean(0).abs().max() < 1e-4


def test_constant_features_give_the_frequencies(classifier):
    x, y = torch.ones(10, 32), torch.zeros(10, 3)
    y[:4, 1], y[:7, 2] = 1, 1
    y[:2, 0] = 1
    fit_head(classifier, [(x, y)], loss="bce", weight_decay=0.01)
    torch.testing.assert_close(classifier.head(x[:1]).sigmoid()[0], torch.tensor([0.2, 0.4, 0.7]), atol=1e-3, rtol=0)


def test_features_are_what_the_head_reads(classifier):
    known = load_classifier("test_vit", num_classes=3)
    images = torch.randn(2, 3, 160, 160)
    torch.testing.assert_close(known.head(pooled_features(known, images).clone()), known.module(images))


def test_a_model_without_linear_head_is_refused():
    with pytest.raises(ModelError, match="linear head"):
        fit_head(load_classifier("test_resnet", num_classes=0), [features()], loss="bce", weight_decay=0.1)
