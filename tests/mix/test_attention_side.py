"""TransMix, LUMix, TokenMix, SMMix, TL-Align, AutoMix, HAT and the training of OAMixer and DynamicViT by definition."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from wsol import mix
from wsol.errors import ConfigError, ModelError
from wsol.mix.base import Context
from wsol.models.classifier import Classifier
from wsol.models.dynamic_tokens import DynamicTokens
from wsol.models.object_aware import ObjectAware

CLASSES = 5
SIZES = {"vit": (48, 80), "pooled": (48, 80), "distilled": (80, 48), "swin": (64, 96), "resnet": (65, 97)}
SIZES |= {"swinv2": (64, 96), "object_aware": (48, 80), "dynamic_tokens": (48, 80)}
SHAPE = {"depth": 3, "embed_dim": 32, "num_heads": 2, "num_classes": CLASSES, "dynamic_img_size": True}
WORKS = {
    "transmix": ("vit", "pooled", "distilled"),
    "lumix": ("vit", "swin", "resnet"),
    "tokenmix": ("vit", "pooled", "distilled"),
    "smmix": ("vit", "pooled", "distilled"),
    "tl_align": ("vit", "pooled", "distilled", "swin", "swinv2"),
    "automix": ("vit", "pooled", "swin", "resnet"),
    "oamixer": ("object_aware",),
    "dynamic_tokens": ("dynamic_tokens",),
}
PAIRS = [(name, model) for name, models in WORKS.items() for model in models]


@functools.cache
def shared(model):
    torch.manual_seed(3)
    if model in ("swin", "swinv2"):
        shape = {"depths": (1, 2, 2, 1), "embed_dim": 16, "num_heads": (1, 1, 2, 4), "strict_img_size": False}
        name = {"swin": "swin_tiny_patch4_window7_224", "swinv2": "swinv2_tiny_window8_256"}[model]
        window = {"window_size": 4} if model == "swin" else {}
        module = timm.create_model(name, num_classes=CLASSES, img_size=64, **shape, **window)
    elif model == "resnet":
        module = timm.create_model("test_resnet", num_classes=CLASSES)
    elif model == "pooled":
        shape = {"depth": 3, "num_classes": CLASSES, "dynamic_img_size": True}
        module = timm.create_model("test_vit2", **shape)
    else:
        name = "deit_tiny_distilled_patch16_224" if model == "distilled" else "deit_tiny_patch16_224"
        module = timm.create_model(name, **SHAPE)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.add_(drawn / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1 * drawn)
    wrapper = {"object_aware": ObjectAware, "dynamic_tokens": DynamicTokens}.get(model, lambda inner: inner)
    return Classifier(wrapper(module).eval(), input_size=(64, 64))


def batch(model="vit", count=3, *, multi=False, seed=0, size=None):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, *(size or SIZES[model]), generator=generator)
    if multi:
        return x, (torch.rand(count, CLASSES, generator=generator) > 0.6).float()
    return x, F.one_hot(torch.arange(count) % CLASSES, CLASSES).float()


def around(known, strategy, x, *, multi=False):
    maps = torch.rand(len(x), CLASSES, 7, 9, generator=torch.Generator().manual_seed(1))
    criterion = F.binary_cross_entropy_with_logits if multi else F.cross_entropy
    own = strategy.own(known)
    label_maps = maps if "label_maps" in strategy.wants() else None
    return Context(known, criterion, own=own, epochs=4, label_maps=label_maps, multi_label=multi)


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize(("name", "model"), PAIRS)
def test_a_step(name, model, multi):
    known = Classifier(copy.deepcopy(shared(model).module).train(), input_size=(64, 64))
    strategy = mix.create(name)
    strategy.check(known)
    x, y = batch(model, multi=multi)
    context = around(known, strategy, x, multi=multi)
    before = x.clone(), y.clone(), {key: item.clone() for key, item in known.module.state_dict().items()}
    draws, state = strategy.draw(x, np.random.default_rng(1)), torch.get_rng_state()
    mixed = strategy.mix(x, y, draws, context)
    again = strategy.mix(x, y, draws, context)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(mixed.images, again.images)
    assert torch.equal(mixed.targets, again.targets)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert all(torch.equal(item, before[2][key]) for key, item in known.module.state_dict().items())
    assert known.module.training
    assert all(parameter.grad is None for parameter in known.module.parameters())
    assert mixed.images.shape == x.shape
    assert mixed.own_mask.shape == (len(x), 1, *x.shape[2:])
    if name != "automix":  # labels by the nominal lambda
        torch.testing.assert_close(mixed.own_mask.mean((1, 2, 3)), mixed.own_weight)
    if name != "smmix":  # windows move
        partner = x[mixed.partner]
        expected = mixed.own_mask * x + (1 - mixed.own_mask) * partner
        torch.testing.assert_close(mixed.images, expected)
    output = strategy.forward(mixed, context)
    targets = strategy.relabel(mixed, output)
    assert targets.shape == y.shape
    assert not targets.requires_grad
    if strategy.keeps_label_mass and not multi:
        torch.testing.assert_close(targets.sum(1), torch.ones(len(x)))
        assert targets.min() >= 0
    loss = strategy.loss(mixed, output, context)
    loss.backward()
    assert loss.ndim == 0
    assert torch.isfinite(loss)
    assert any(parameter.grad is not None for parameter in known.module.parameters())
    if context.own is not None:
        wanting = [parameter for parameter in context.own.parameters() if parameter.requires_grad]
        assert all(parameter.grad is not None for parameter in wanting)
    strategy.after_step(context)


@pytest.mark.parametrize("name", ["transmix", "tokenmix", "smmix", "tl_align"])
def test_models_without_attention_are_refused(name):
    with pytest.raises(ModelError, match="attention") as caught:
        mix.create(name).check(shared("resnet"))
    assert "vision transformer" in caught.value.hint


@pytest.mark.parametrize(("name", "what"), [("oamixer", "knows no labels"), ("dynamic_tokens", "drops no patches")])
def test_wrapped_models_only(name, what):
    with pytest.raises(ModelError, match=what):
        mix.create(name).check(shared("vit"))


@pytest.mark.parametrize("name", ["transmix", "lumix", "hat"])
@pytest.mark.parametrize("inner", ["smmix", "tl_align", "automix", "choice: {strategies: [mixup, smmix]}"])
def test_labels_and_losses_of_inner_strategies_are_not_lost_silently(name, inner):
    with pytest.raises(ConfigError, match="of its own"):
        mix.create(name, inner=inner).check(shared("vit"))


@pytest.mark.parametrize("name", ["tokenmix", "smmix", "tl_align", "automix", "oamixer"])
def test_a_context_is_asked_for(name):
    x, y = batch()
    strategy = mix.create(name)
    with pytest.raises(ConfigError, match="needs the model"):
        strategy.mix(x, y, strategy.draw(x, np.random.default_rng(0)))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lumix", {"seen": 0.8, "noise": 0.3}, "sum of at most 1"),
        ("lumix", {"noise": -0.1}, "shares"),
        ("smmix", {"min_side": 0.9}, "sides must be"),
        ("tl_align", {"alpha": 0.0}, "alpha must be positive"),
        ("hat", {"passes": 0}, "passes must be"),
        ("hat", {"inner": "hat"}, "replaces the whole step"),
        ("tokenmix", {"maps": "none"}, "cannot be 'none'"),
    ],
)
def test_mistakes_are_named(name, options, message):
    with pytest.raises(ConfigError, match=message):
        mix.create(name, **options)


@pytest.mark.parametrize("name", ["oamixer", "tokenmix"])
def test_missing_maps_are_named(name):
    known, (x, y) = shared("vit"), batch()
    strategy = mix.create(name, **({"maps": "teacher"} if name == "tokenmix" else {}))
    assert strategy.wants() >= {"label_maps"}
    with pytest.raises(ConfigError, match="are not there"):
        strategy.mix(x, y, strategy.draw(x, np.random.default_rng(0)), Context(known, F.cross_entropy))
