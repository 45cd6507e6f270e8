"""Every strategy of the registry trains every kind of network, or says why it cannot."""

from __future__ import annotations

import random

import numpy as np
import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

from wsol import mix
from wsol.engine.losses import make_criterion
from wsol.engine.optim import make_optimizer
from wsol.engine.train_options import TrainConfig
from wsol.errors import DataError, ModelError
from wsol.mix import Context, StepStrategy
from wsol.mix._forward import check_needs
from wsol.models.classifier import Classifier
from wsol.models.dynamic_tokens import DynamicTokens
from wsol.models.object_aware import ObjectAware

NAMES = mix.MIXES.names()
COUNT, CLASSES, SIZE = 5, 6, (32, 48)


def vit(**changes):
    options = {"img_size": SIZE, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": CLASSES}
    return VisionTransformer(**(options | changes))


def swin():
    shape = {"img_size": SIZE, "patch_size": 4, "window_size": 4, "embed_dim": 16, "depths": (1, 1)}
    return SwinTransformer(**shape, num_heads=(1, 2), num_classes=CLASSES, drop_path_rate=0.0)


NETWORKS = {
    "resnet": lambda: timm.create_model("test_resnet", num_classes=CLASSES),
    "deit": vit,
    "vit without class token": lambda: vit(class_token=False, global_pool="avg"),
    "swin": swin,
    "object aware deit": lambda: ObjectAware(vit()),
    "dynamic deit": lambda: DynamicTokens(vit()),
}
# What a strategy must be able to train; the others it may refuse.
SUITS = {"oamixer": "object aware deit", "dynamic_tokens": "dynamic deit"}
PAIRS = [(name, network) for name in NAMES for network in (*NETWORKS,)[:4]] + [*SUITS.items()]


def batch(*, multi_label):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(COUNT, 3, *SIZE, generator=generator)
    y = torch.zeros(COUNT, CLASSES)
    y[torch.arange(COUNT), torch.arange(COUNT)] = 1.0
    if multi_label:
        y[0, 3:], y[1] = 1.0, 0.0  # several, and none
    return x, y


def label_maps():
    return torch.rand(COUNT, CLASSES, 4, 6, generator=torch.Generator().manual_seed(2))


def train(name, network, *, multi_label, steps=2):
    """Take a few steps; return the weights after them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = Classifier(NETWORKS[network](), name=network, input_size=SIZE)
        strategy = mix.create(name)
        check_needs(classifier, strategy.wants() - {"label_maps"})
        strategy.check(classifier)
        own = strategy.own(classifier)
    config = TrainConfig(data="none", out="none", model="none", lr=1e-3)
    optimizer = make_optimizer(classifier.module, config, own=own)
    x, y = batch(multi_label=multi_label)
    before = x.clone(), y.clone()
    criterion = make_criterion("bce" if multi_label else "ce", config)
    for step in range(steps):
        classifier.module.train()
        context = Context(
            classifier,
            criterion,
            own=own,
            epoch=step,
            epochs=steps,
            label_maps=label_maps() if "label_maps" in strategy.wants() else None,
            multi_label=multi_label,
        )
        optimizer.zero_grad()
        draws = strategy.draw(x, np.random.default_rng([7, step]))
        if isinstance(strategy, StepStrategy):
            loss = strategy.step(x, y, draws, context, backward=lambda value: value.backward())
            assert not loss.requires_grad
        else:
            mixed = strategy.mix(x, y, draws, context)
            assert mixed.images.shape == (strategy.growth * COUNT, *x.shape[1:])
            loss = strategy.loss(mixed, strategy.forward(mixed, context), context)
            loss.backward()
        assert loss.ndim == 0
        assert torch.isfinite(loss)
        assert all(layer.training for layer in classifier.module.modules()), "the mode is left as it was"
        optimizer.step()
        strategy.after_step(context)
    assert torch.equal(x, before[0]), "the caller's tensors stay as they are"
    assert torch.equal(y, before[1])
    return classifier.module.state_dict()


@pytest.mark.parametrize(("name", "network"), PAIRS)
def test_it_trains_or_refuses(name, network):
    python, numpy, own = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    refusal = None
    try:
        weights = train(name, network, multi_label=False)
    except ModelError as error:
        refusal = error
    if refusal is not None:
        assert network in str(refusal), "a refusal names the model"
        assert refusal.hint, "a refusal says what to take instead"
        assert network != SUITS.get(name, "deit"), "there is a network that suits each strategy"
        return
    again = train(name, network, multi_label=False)
    assert all(torch.equal(weights[key], again[key]) for key in weights), "same seed, same weights"
    train(name, network, multi_label=True)
    assert random.getstate() == python
    assert np.array_equal(np.random.get_state()[1], numpy[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), own)


@pytest.mark.parametrize("name", NAMES)
def test_what_info_says(name):
    entry = mix.MIXES.get(name)
    assert entry.family in ("delete", "cut", "mixup", "attention", "other")
    assert entry.cost
    assert entry.paper or name in ("none", "until")
    assert mix.MIXES.summary(name)
    assert isinstance(entry.keeps_label_mass, bool)


@pytest.mark.parametrize("name", NAMES)
def test_the_label_mass_is_as_said(name):
    strategy = mix.create(name)
    if isinstance(strategy, StepStrategy) or not strategy.keeps_label_mass:
        pytest.skip("no promise")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = Classifier(NETWORKS[SUITS.get(name, "deit")](), input_size=SIZE, name="deit")
        own = strategy.own(classifier)
    x, y = batch(multi_label=False)
    context = Context(classifier, make_criterion("ce", None), own=own, label_maps=label_maps())
    mixed = strategy.mix(x, y, strategy.draw(x, np.random.default_rng(3)), context)
    targets = strategy.relabel(mixed, strategy.forward(mixed, context))
    torch.testing.assert_close(targets.sum(1), torch.ones(strategy.growth * COUNT), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("labels", [torch.arange(COUNT), torch.eye(CLASSES, dtype=torch.int64)[:COUNT]])
def test_labels_that_cannot_be_mixed_are_refused(name, labels):
    strategy = mix.create(name)
    network = SUITS.get(name, "deit")
    with torch.random.fork_rng():
        classifier = Classifier(NETWORKS[network](), input_size=SIZE, name=network)
        own = strategy.own(classifier)
    context = Context(classifier, make_criterion("ce", None), own=own, label_maps=label_maps())
    x, _ = batch(multi_label=False)
    draws = strategy.draw(x, np.random.default_rng(3))
    with pytest.raises(DataError, match=r"expected float labels \(B, K\), got torch.int64") as refusal:
        if isinstance(strategy, StepStrategy):
            strategy.step(x, labels, draws, context, backward=lambda value: value.backward())
        else:
            strategy.mix(x, labels, draws, context)
    assert "one_hot" in refusal.value.hint
