"""What TokenMix, TL-Align, AutoMix, HAT, OAMixer and DynamicViT do with networks, against loops and definitions."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from wsol import mix
from wsol.errors import ConfigError
from wsol.mix._label_path import carried
from wsol.mix._tokens import at_cells
from wsol.mix.automix import kept_share
from wsol.mix.base import Context
from wsol.models.classifier import Classifier
from wsol.models.dynamic_tokens import DynamicTokens
from wsol.models.object_aware import ObjectAware

CLASSES = 5
SIZES = {"vit": (48, 80), "pooled": (48, 80), "distilled": (80, 48), "swin": (64, 96), "resnet": (65, 97)}
SIZES |= {"swinv2": (64, 96), "object_aware": (48, 80), "dynamic_tokens": (48, 80)}
SHAPE = {"depth": 3, "embed_dim": 32, "num_heads": 2, "num_classes": CLASSES, "dynamic_img_size": True}


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


def test_tokenmix_target_by_loops():
    known, (x, y) = shared("vit"), batch(multi=True)
    strategy = mix.create("tokenmix", maps="teacher")
    context = around(known, strategy, x, multi=True)
    mixed = strategy.mix(x, y, strategy.draw(x, np.random.default_rng(3)), context)
    maps = F.adaptive_avg_pool2d(context.label_maps, (3, 5))
    own = at_cells(mixed.own_mask, (3, 5))[:, 0]
    for at, other in enumerate(mixed.partner):
        for label in range(CLASSES):
            share = (maps[at, label] * own[at]).sum() / maps[at, label].sum()
            given_by = (maps[other, label] * (1 - own[at])).sum() / maps[other, label].sum()
            expected = share * y[at, label] + given_by * y[other, label]
            assert mixed.targets[at, label].item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("model", ["vit", "pooled", "distilled", "swin", "swinv2"])
def test_the_label_path_changes_no_logits(model):
    known, (x, y) = shared(model), batch(model)
    strategy = mix.create("tl_align")
    context = around(known, strategy, x)
    mixed = strategy.mix(x, y, {"lam": 0.5, "centre": (0.6, 0.3), "partner": np.array([1, 2, 0])}, context)
    assert 0 < mixed.own_weight[0] < 1
    with torch.no_grad():
        logits, share = carried(context, mixed)
        torch.testing.assert_close(logits, known.module(mixed.images), atol=1e-4, rtol=1e-4)
    assert ((share > 0) & (share < 1)).all()
    assert (share - mixed.own_weight).abs().max() > 1e-4
    whole = strategy.mix(x, y, {"lam": 1.0, "centre": (0.6, 0.3), "partner": np.array([1, 2, 0])}, context)
    torch.testing.assert_close(carried(context, whole)[1], torch.ones(3))


def test_the_label_path_of_a_transformer_by_loops():
    known, (x, y) = shared("vit"), batch()
    strategy = mix.create("tl_align")
    context = around(known, strategy, x)
    mixed = strategy.mix(x, y, {"lam": 0.4, "centre": (0.5, 0.5), "partner": np.array([2, 1, 0])}, context)
    from wsol.mix._forward import forward

    with torch.no_grad():
        layers = forward(known, mixed.images, needs={"layers"}).layers
    tokens = at_cells(mixed.own_mask, (3, 5)).flatten(1)[..., None]
    labels = tokens * y[:, None] + (1 - tokens) * mixed.y_partner[:, None]
    labels = torch.cat([mixed.targets[:, None], labels], 1)
    for layer in layers:
        labels = (layer @ labels + labels) / 2
    ours = strategy.relabel(mixed, strategy.forward(mixed, context))
    torch.testing.assert_close(ours, labels[:, 0])


def automixed(lams=(0.3, 0.6), variant="automix"):
    known = Classifier(copy.deepcopy(shared("resnet").module).train())
    strategy = mix.create("automix", variant=variant)
    x, y = batch("resnet")
    context = around(known, strategy, x)
    nn.init.normal_(context.own.block.query.weight, std=1.0)
    draws = {"lams": lams, "partners": np.array([[1, 2, 0], [2, 0, 1]])}
    return strategy, context, strategy.mix(x, y, draws, context), x, y


@pytest.mark.parametrize("variant", ["automix", "samix"])
def test_gradients_of_automix(variant):
    strategy, context, mixed, _, _ = automixed(variant=variant)
    assert not mixed.images.requires_grad
    assert mixed.taught.requires_grad
    strategy.loss(mixed, strategy.forward(mixed, context), context).backward()
    assert all(parameter.grad is not None for parameter in context.own.block.parameters())
    assert all(parameter.grad is None for parameter in context.own.encoder.parameters())
    assert context.own.block.query.weight.grad.abs().max() > 0


def test_masks_of_automix_depend_on_lambda():
    masks = [automixed((0.5, lam))[2].own_mask for lam in (0.2, 0.7)]
    assert (masks[0] - masks[1]).abs().max() > 1e-5
    _, _, mixed, x, _ = automixed((0.5, 0.97))
    torch.testing.assert_close(mixed.images, 0.97 * x + 0.03 * x[[2, 0, 1]])


def test_moving_average_of_automix():
    strategy, context, _, _, _ = automixed()
    before = [parameter.clone() for parameter in context.own.encoder.parameters()]
    with torch.no_grad():
        for parameter in context.classifier.module.parameters():
            parameter.add_(1.0)
    strategy.after_step(context)
    for old, new, live in zip(
        before, context.own.encoder.parameters(), context.classifier.module.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.999 * old + 0.001 * live)
    assert [kept_share(at) for at in (0.0, 0.1, 1.0)] == pytest.approx([0.999, 0.999, 0.99999])
    assert kept_share(0.55) == pytest.approx((0.999 + 0.99999) / 2)


def test_one_pass_of_hat_is_plain_training():
    known, (x, y) = shared("vit"), batch()
    grads = []
    for passes, epoch in ((1, 0), (3, 3)):  # the last third of the epochs has one pass
        known.module.zero_grad()
        context = Context(known, F.cross_entropy, epoch=epoch, epochs=4)
        loss = mix.create("hat", inner="none", passes=passes).step(x, y, {}, context, backward=torch.Tensor.backward)
        grads.append([parameter.grad.clone() for parameter in known.module.parameters()])
    known.module.zero_grad()
    plain = F.cross_entropy(known.module(x), y)
    plain.backward()
    torch.testing.assert_close(loss, plain.detach())
    for one, two, parameter in zip(*grads, known.module.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(two, parameter.grad, atol=1e-6, rtol=1e-4)
    known.module.zero_grad(set_to_none=True)


@pytest.mark.parametrize("multi", [False, True])
def test_disturbance_of_hat_is_bounded(multi):
    known, (x, y) = shared("resnet"), batch("resnet", multi=multi)
    seen = []
    handle = known.module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    criterion = F.binary_cross_entropy_with_logits if multi else F.cross_entropy
    context = Context(known, criterion, epochs=4, multi_label=multi)
    strategy = mix.create("hat", inner="mixup", passes=5)
    draws = strategy.draw(x, np.random.default_rng(0))
    strategy.step(x, y, draws, context, backward=torch.Tensor.backward)
    handle.remove()
    known.module.zero_grad(set_to_none=True)
    images = mix.create("mixup").mix(x, y, draws).images
    assert len(seen) == 6
    assert torch.equal(seen[0], images)
    largest = [(one - images).abs().max().item() * 255 for one in seen[1:]]
    assert largest == pytest.approx([0, 1, 2, 2, 2], abs=1e-3)


def test_labels_of_patches_are_mixed_as_the_images():
    known, (x, y) = shared("object_aware"), batch("object_aware")
    strategy = mix.create("oamixer", inner="mixup")
    context = around(known, strategy, x)
    draws = {"lam": 0.3, "partner": np.array([1, 2, 0])}
    labels = strategy.mix(x, y, draws, context).patch_labels
    clean = strategy.mix(x, y, draws | {"lam": 1.0}, context).patch_labels
    assert labels.shape == (3, 15, CLASSES + 1)
    torch.testing.assert_close(labels.sum(2), torch.ones(3, 15))
    torch.testing.assert_close(labels, 0.3 * clean + 0.7 * clean[[1, 2, 0]])


@pytest.mark.parametrize("inner", ["fmix", "gridmix", "resizemix", "puzzlemix", "rmix", "rmix: {clean: 1.0}"])
@pytest.mark.parametrize("name", ["transmix", "lumix"])
def test_labels_over_strategies_that_know_whose_each_pixel_is(name, inner):
    known, (x, y) = shared("vit"), batch()
    strategy = mix.create(name, inner=inner)
    if "clean" in inner:
        with pytest.raises(ConfigError, match="a loss of its own"):
            strategy.check(known)
        return
    strategy.check(known)
    context = around(known, strategy, x)
    mixed = strategy.mix(x, y, strategy.draw(x, np.random.default_rng(5)), context)
    targets = strategy.relabel(mixed, strategy.forward(mixed, context))
    torch.testing.assert_close(targets.sum(1), torch.ones(3))
    assert (targets[y + mixed.y_partner == 0] == 0).all(), "only labels of the two images"


def test_kappa_learns():
    known = copy.deepcopy(shared("object_aware"))
    strategy = mix.create("oamixer", inner="none")
    x, y = batch("object_aware")
    context = around(known, strategy, x)
    mixed = strategy.mix(x, y, {}, context)
    strategy.loss(mixed, strategy.forward(mixed, context), context).backward()
    # the class token, which alone is read of the last block, looks at all patches alike
    assert (known.module.kappa.grad != 0).tolist() == [True, True, False]


@pytest.mark.parametrize(("kernel", "expected"), [("exp", [0.0, 3.0, 0.5]), ("minus", [0.0, 1.0, 0.5])])
def test_kappa_can_learn_again_after_a_step_too_far(kernel, expected):
    known = copy.deepcopy(shared("object_aware"))
    known.module.kernel = kernel
    strategy = mix.create("oamixer", inner="none")
    with torch.no_grad():
        known.module.kappa.copy_(torch.tensor([-1.0, 3.0, 0.5]))
    x, y = batch("object_aware")
    context = around(known, strategy, x)
    strategy.after_step(context)
    assert known.module.kappa.tolist() == expected
    mixed = strategy.mix(x, y, {}, context)
    strategy.loss(mixed, strategy.forward(mixed, context), context).backward()
    assert (known.module.kappa.grad[:2] != 0).all()


def test_the_teacher_of_dynamic_training_stays():
    known = copy.deepcopy(shared("dynamic_tokens"))
    strategy = mix.create("dynamic_tokens", inner="none")
    own = strategy.own(known)
    own.train()
    assert not any(layer.training for layer in own["teacher"].modules())
    assert not any(parameter.requires_grad for parameter in own.parameters())
    x, y = batch("dynamic_tokens")
    known.module.train()
    context = Context(known, F.cross_entropy, own=own, epochs=4)
    mixed = strategy.mix(x, y, {"inner": {}, "seed": 4}, context)
    state = torch.get_rng_state()
    strategy.loss(mixed, strategy.forward(mixed, context), context).backward()
    assert torch.equal(torch.get_rng_state(), state)
    for parameter in known.module.predictors.parameters():
        assert parameter.grad is not None
    assert all(parameter.grad is None for parameter in own.parameters())
