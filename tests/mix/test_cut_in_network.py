"""Strategies that work inside the network or remember the last step: manifold mixup and RecursiveMix."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

from wsol import mix
from wsol.errors import ModelError
from wsol.mix import Context
from wsol.mix._history import forward_with_box
from wsol.mix.manifold_mixup import stage_name
from wsol.models.classifier import Classifier

SIZE = (48, 64)
NETWORKS = {
    "vit": lambda: VisionTransformer(
        img_size=SIZE, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=6, class_token=True
    ),
    "resnet": lambda: timm.create_model("test_resnet", num_classes=6),
}


def batch(count=5, seed=0):
    x = torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
    return x, torch.eye(6)[torch.arange(count) % 6]


def make(network):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = Classifier(NETWORKS[network](), name=network, input_size=SIZE)
        own = mix.create("recursivemix").own(classifier)
    classifier.module.eval()
    return classifier, Context(classifier, F.cross_entropy, own=own)


def by_hand(module, x, lam, partner, layer):
    """Run a network stage by stage, and mix after one of them."""

    def add(h, at):
        return lam * h + (1 - lam) * h[partner] if at == layer else h

    if isinstance(module, VisionTransformer):
        h = module.norm_pre(module._pos_embed(module.patch_embed(x)))
        for at, block in enumerate(module.blocks, 1):
            h = add(block(h), at)
        return module.forward_head(module.norm(h))
    h = module.maxpool(module.act1(module.bn1(module.conv1(x))))
    for at, stage in enumerate((module.layer1, module.layer2, module.layer3, module.layer4), 1):
        h = add(stage(h), at)
    return module.forward_head(h)


# Quarters of three blocks end after the first, the second, the third and the third.
@pytest.mark.parametrize(("network", "stages"), [("vit", (1, 2, 3, 3)), ("resnet", (1, 2, 3, 4))])
def test_manifold_mixup_by_hand(network, stages):
    classifier, context = make(network)
    x, y = batch()
    strategy, partner = mix.create("manifold_mixup", stages=4), np.array([2, 0, 1, 4, 3])
    strategy.check(classifier)
    for layer, at in enumerate(stages, 1):
        mixed = strategy.mix(x, y, {"lam": 0.3, "layer": layer, "partner": partner})
        assert torch.equal(mixed.images, x)
        assert mixed.own_mask is None
        torch.testing.assert_close(mixed.targets, 0.3 * y + 0.7 * y[partner])
        expected = by_hand(classifier.module, x, 0.3, partner, at)
        torch.testing.assert_close(strategy.forward(mixed, context).logits, expected)
        plain = by_hand(classifier.module, x, 0.3, partner, None)
        assert not torch.allclose(expected, plain)
        torch.testing.assert_close(classifier.module(x), plain, msg="the hook is gone")


def test_manifold_mixup_of_the_input_is_mixup():
    _, context = make("vit")
    x, y = batch()
    draws = {"lam": 0.3, "layer": 0, "partner": np.array([2, 0, 1, 4, 3])}
    hidden, plain = (mix.create(name).mix(x, y, draws) for name in ("manifold_mixup", "mixup"))
    assert torch.equal(hidden.images, plain.images)
    assert torch.equal(hidden.own_mask, plain.own_mask)
    output = mix.create("manifold_mixup").forward(hidden, context)
    torch.testing.assert_close(output.logits, context.classifier.module(plain.images))


def test_manifold_mixup_draws_every_layer():
    generator, strategy = np.random.default_rng(0), mix.create("manifold_mixup", stages=3)
    drawn = [strategy.draw(batch()[0], generator)["layer"] for _ in range(400)]
    assert np.bincount(drawn) == pytest.approx([100] * 4, abs=35)


def test_manifold_mixup_needs_stages():
    classifier, _ = make("resnet")
    assert [stage_name(classifier, layer) for layer in (1, 2)] == ["layer1", "layer2"]
    classifier.module.feature_info = []
    with pytest.raises(ModelError, match="does not say where its stages end"):
        mix.create("manifold_mixup").check(classifier)


def steps(strategy, context, batches, *, areas):
    """Take steps without an optimizer; return the mixed batches, outputs and losses."""
    taken = []
    for (x, y), share in zip(batches, areas, strict=True):
        mixed = strategy.mix(x, y, {"area": share, "centre": (20, 40)}, context)
        output = strategy.forward(mixed, context)
        taken.append((mixed, output, strategy.loss(mixed, output, context)))
    return taken


@pytest.mark.parametrize("network", NETWORKS)
def test_recursivemix_pastes_the_mixed_batch_before(network):
    _, context = make(network)
    strategy, batches = mix.create("recursivemix", omega=0.7), [batch(5, seed) for seed in range(3)]
    (first, said_first, loss_first), (second, said_second, loss_second), (third, *_) = steps(
        strategy, context, batches, areas=[0.25, 0.25, 0.2]
    )
    assert torch.equal(first.images, batches[0][0]), "nothing to paste yet"
    torch.testing.assert_close(loss_first, F.cross_entropy(said_first.logits, batches[0][1]))
    top, left, bottom, right = second.box
    assert (top, left, bottom, right) == (8, 24, 32, 56)
    for before, after in ((first, second), (second, third)):
        top, left, bottom, right = after.box
        small = F.interpolate(before.images, (bottom - top, right - left), mode="nearest")
        assert torch.equal(after.images[:, :, top:bottom, left:right], small)
        weight = 1 - (bottom - top) * (right - left) / (48 * 64)
        torch.testing.assert_close(after.targets, weight * after.y_own + (1 - weight) * before.targets)
        torch.testing.assert_close(after.own_mask.mean((1, 2, 3)), after.own_weight)
    outside = second.own_mask.bool().expand_as(second.images)
    assert torch.equal(second.images[outside], batches[1][0][outside])
    consistency = F.cross_entropy(said_second.region, said_first.logits.softmax(1).detach())
    expected = F.cross_entropy(said_second.logits, second.targets) + 0.7 * 0.25 * consistency
    torch.testing.assert_close(loss_second, expected)
    loss_second.backward()
    assert context.own.head.weight.grad.abs().sum() > 0


def test_recursivemix_with_batches_of_other_sizes():
    _, context = make("vit")
    _, (second, *_) = steps(mix.create("recursivemix"), context, [batch(2), batch(5, 1)], areas=[0.3, 0.3])
    assert second.partner.tolist() == [0, 1, 0, 1, 0]
    assert second.y_partner.shape == (5, 6)


def test_recursivemix_starts_anew_with_an_epoch():
    classifier, context = make("vit")
    strategy = mix.create("recursivemix")
    steps(strategy, context, [batch()], areas=[0.3])
    x, y = batch(5, 1)
    draws = {"area": 0.3, "centre": (20, 40)}
    later = Context(classifier, F.cross_entropy, own=context.own, epoch=1)
    assert torch.equal(strategy.mix(x, y, draws, later).images, x)
    assert not torch.equal(strategy.mix(x, y, draws, context).images, x)
    assert torch.equal(strategy.mix(x, y, draws).images, x), "nor without a training"
    assert torch.equal(strategy.mix(x, y, draws | {"area": 0.0}, context).images, x)
    assert set(context.own.state_dict()) == {"head.weight", "head.bias"}


def test_recursivemix_with_several_labels():
    classifier, context = make("vit")
    context = Context(classifier, F.binary_cross_entropy_with_logits, own=context.own, multi_label=True)
    strategy = mix.create("recursivemix")
    (_, said, _), (second, _, loss) = steps(strategy, context, [batch(), batch(5, 1)], areas=[0.3, 0.3])
    torch.testing.assert_close(second.before, said.logits.sigmoid().detach())
    assert torch.isfinite(loss)


def test_the_box_in_the_features_is_their_mean():
    classifier, context = make("vit")
    x, _ = batch()
    logits, region = forward_with_box(context, x, (16, 8, 40, 48))
    tokens = classifier.to_grid(classifier.module.forward_features(x), *SIZE)
    torch.testing.assert_close(region, context.own.head(tokens[:, :, 2:5, 1:6].mean((2, 3))))
    torch.testing.assert_close(logits, classifier.module(x))
    assert forward_with_box(context, x, None)[1] is None
