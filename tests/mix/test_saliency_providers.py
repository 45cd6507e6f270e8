"""What strategies ask the model about clean images: right, and without a trace in the model."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from wsol import mix
from wsol.errors import ConfigError, ModelError
from wsol.mix import Context, Mixed, Output
from wsol.mix._providers import (
    check_class_maps,
    class_maps,
    clean_output,
    input_gradient,
    quiet,
    saliency,
)
from wsol.models.classifier import Classifier

COUNT, CLASSES, SIZE = 5, 6, (32, 47)
NAMES = ("rmix", "snapmix", "puzzlemix", "comixup", "keepaugment", "saliency_grafting")


@pytest.fixture(scope="module")
def resnet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = timm.create_model("test_resnet", num_classes=CLASSES, drop_rate=0.3, drop_path_rate=0.3)
    return Classifier(module.train(), name="resnet", input_size=SIZE)


@pytest.fixture(scope="module")
def vit():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = VisionTransformer(
            img_size=(32, 40), patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=CLASSES
        )
    return Classifier(module.train(), name="vit", input_size=(32, 40))


def batch(size=SIZE, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(COUNT, 3, *size, generator=generator)
    return x, F.one_hot(torch.arange(COUNT) % CLASSES, CLASSES).float()


def traces(module):
    """Everything of a model and its surroundings that a look may not change."""
    state = {name: value.clone() for name, value in module.state_dict().items()}
    modes = [layer.training for layer in module.modules()]
    tracked = [getattr(layer, "track_running_stats", None) for layer in module.modules()]
    grads = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
    return state, modes, tracked, grads, torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002


def assert_same(before, after):
    assert before[1:3] == after[1:3]
    assert all(torch.equal(before[0][key], after[0][key]) for key in before[0])
    assert all((a is None) == (b is None) and (a is None or torch.equal(a, b)) for a, b in zip(before[3], after[3]))
    assert torch.equal(before[4], after[4])
    assert np.array_equal(before[5], after[5])


@pytest.mark.parametrize("name", NAMES)
def test_mixing_leaves_no_trace_and_repeats(resnet, name):
    x, y = batch()
    x.requires_grad_(False)
    F.cross_entropy(resnet.module(x), y).backward()  # gradients to keep, and new running statistics
    strategy = mix.create(name)
    context = Context(resnet, F.cross_entropy, own=strategy.own(resnet))
    draws = strategy.draw(x, np.random.default_rng(0))
    before, inputs = traces(resnet.module), (x.clone(), y.clone())
    one, two = strategy.mix(x, y, draws, context), strategy.mix(x, y, draws, context)
    assert_same(before, traces(resnet.module))
    assert torch.equal(x, inputs[0])
    assert torch.equal(y, inputs[1])
    assert torch.equal(one.images, two.images), "dropout and stochastic depth stay off"
    assert torch.equal(one.targets, two.targets)
    assert not one.images.requires_grad
    assert not one.targets.requires_grad
    resnet.module.zero_grad()


@pytest.mark.parametrize("name", ["rmix", "puzzlemix", "comixup"])
def test_the_loss_of_the_clean_images(resnet, name):
    x, y = batch()
    strategy = mix.create(name, clean=0.7)
    context = Context(resnet, F.cross_entropy)
    draws = strategy.draw(x, np.random.default_rng(0))
    mixed = strategy.mix(x, y, draws, context)
    output = Output(logits=torch.zeros(COUNT, CLASSES))
    _, logits = clean_output(context, x, batch_stats=True)
    expected = F.cross_entropy(output.logits, mixed.targets) + 0.7 * F.cross_entropy(logits, y)
    loss = strategy.loss(mixed, output, context)
    torch.testing.assert_close(loss, expected)
    before = traces(resnet.module)
    loss.backward()
    with quiet(resnet.module, batch_stats=True):
        again = 0.7 * F.cross_entropy(resnet.module(x), y)
    for parameter, gradient in zip(
        resnet.module.parameters(), torch.autograd.grad(again, [*resnet.module.parameters()])
    ):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)
    resnet.module.zero_grad()
    assert_same(before, traces(resnet.module))
    assert type(mix.create(name, clean=0.0).mix(x, y, draws, context)) is Mixed
    with pytest.raises(ConfigError, match="clean must not be negative"):
        mix.create(name, clean=-1.0)
    with pytest.raises(ConfigError, match="clean must not be negative, got nan"):
        mix.create(name, clean=float("nan"))


@pytest.mark.parametrize("name", NAMES)
def test_a_strategy_without_a_model_says_so(name):
    strategy, (x, y) = mix.create(name), batch()
    with pytest.raises(ConfigError, match=f"mix '{name}': needs the model"):
        strategy.mix(x, y, strategy.draw(x, np.random.default_rng(0)))


def test_input_gradient_is_that_of_the_loss(resnet):
    x, y = batch()
    context = Context(resnet, F.cross_entropy)
    found = input_gradient(context, x, y)
    precise, step, at = copy.deepcopy(resnet.module).double().eval(), 1e-4, (2, 1, 15, 20)
    nudge = torch.zeros_like(x, dtype=torch.float64)
    nudge[at] = step
    with torch.no_grad():
        high, low = (F.cross_entropy(precise(x.double() + sign * nudge), y.double()) for sign in (1, -1))
    assert found[at].item() == pytest.approx(((high - low) / (2 * step)).item(), rel=1e-3)
    assert torch.equal(saliency(context, x, y), found.square().mean(1).sqrt())
    score = input_gradient(context, x, y, objective=lambda logits, _: logits.sum())
    assert not torch.allclose(score, found)


def test_statistics_of_the_batch(resnet):
    x, _ = batch()
    context = Context(resnet, F.cross_entropy)
    _, running = clean_output(context, x)
    _, of_batch = clean_output(context, x, batch_stats=True)
    expected = timm.create_model("test_resnet", num_classes=CLASSES)  # no dropout
    expected.load_state_dict(resnet.module.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(expected.train()(x), of_batch)
    assert not torch.allclose(running, of_batch)
    resnet.module.eval()  # a frozen backbone stays with its own statistics
    _, frozen = clean_output(context, x, batch_stats=True)
    resnet.module.train()
    assert torch.equal(frozen, running)


def test_class_maps_are_those_whose_mean_is_the_logit(resnet):
    x, _ = batch()
    classes = torch.tensor([[0, 3], [1, 1], [5, 2], [4, 0], [2, 3]])
    maps = class_maps(Context(resnet, F.cross_entropy), x, classes)
    _, logits = clean_output(Context(resnet, F.cross_entropy), x)
    assert maps.shape == (COUNT, 2, *resnet.grid(*SIZE))
    torch.testing.assert_close(maps.mean((2, 3)), logits.gather(1, classes), atol=1e-4, rtol=1e-4)


def test_gradient_maps_agree_with_class_maps_up_to_scale_and_offset(resnet):
    x, _ = batch()
    classes, context = torch.tensor([[0, 3]] * COUNT), Context(resnet, F.cross_entropy)
    maps = class_maps(context, x, classes)
    resnet.__dict__["pools_linearly"] = False
    try:
        before = traces(resnet.module)
        gradient = class_maps(context, x, classes)
        assert_same(before, traces(resnet.module))
    finally:
        del resnet.__dict__["pools_linearly"]
    standard = [(item - item.mean((2, 3), keepdim=True)) / item.std((2, 3), keepdim=True) for item in (maps, gradient)]
    torch.testing.assert_close(*standard, atol=1e-3, rtol=1e-3)


def test_transformers_have_gradient_maps(vit):
    x, _ = batch((32, 40))
    check_class_maps(vit)
    maps = class_maps(Context(vit, F.cross_entropy), x, torch.tensor([[0], [1], [2], [3], [4]]))
    assert maps.shape == (COUNT, 1, 4, 5)
    assert maps.std() > 0


def test_models_without_a_place_to_look_are_refused():
    class Blind(nn.Module):
        pretrained_cfg = {"architecture": "blind", "input_size": (3, 32, 32)}  # noqa: RUF012
        num_classes, global_pool, num_prefix_tokens = CLASSES, "token", 1
        feature_info = [{"reduction": 8}]  # noqa: RUF012

        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, CLASSES)

        def forward_features(self, x):
            tokens = self.embed(x).flatten(2).transpose(1, 2)
            return torch.cat([tokens.mean(1, keepdim=True), tokens], 1) * 1.0

        def forward_head(self, tokens):
            return self.head(tokens[:, 0])

        def get_classifier(self):
            return self.head

        def forward(self, x):
            return self.forward_head(self.forward_features(x))

    with pytest.raises(ModelError, match="blind: has no layer for class activation maps"):
        mix.create("snapmix").check(Classifier(Blind(), input_size=(32, 32)))


def test_mixed_precision_gives_float32(vit):
    x, y = batch((32, 40))
    context = Context(vit, F.cross_entropy, amp=True)
    plain = saliency(Context(vit, F.cross_entropy), x, y)
    found = saliency(context, x, y)
    assert found.dtype == torch.float32
    assert F.cosine_similarity(plain.flatten(), found.flatten(), dim=0) > 0.98
    assert class_maps(context, x, torch.zeros(COUNT, 1, dtype=torch.int64)).dtype == torch.float32
