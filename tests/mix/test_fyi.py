"""FYI: mirror images beside the images, and what they do to the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wsol import mix
from wsol.engine.losses import asymmetric_loss
from wsol.errors import ConfigError
from wsol.mix import Context, Output

FYI = mix.create("fyi")
CRITERIA = {"ce": F.cross_entropy, "bce": F.binary_cross_entropy_with_logits, "asl": asymmetric_loss}
SHAPES = {"count": st.integers(2, 5), "size": st.tuples(st.integers(1, 13), st.integers(1, 17)), "seed": st.integers(0)}


def batch(count, size, seed, classes=4):
    generator = torch.Generator().manual_seed(seed % 2**63)
    kind = {"generator": generator, "dtype": torch.float64}
    return torch.randn(count, 3, *size, **kind), torch.rand(count, classes, **kind)


class Network(nn.Module):
    """Convolution, batch norm, mean: with kernels that are their own mirror images it does not see a mirror."""

    def __init__(self, *, symmetric, seed=0):
        super().__init__()
        kernel = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.kernel = nn.Parameter(kernel + kernel.flip(3) if symmetric else kernel)
        self.norm = nn.BatchNorm2d(4, dtype=torch.float64)

    def forward(self, x):
        return self.norm(F.conv2d(x, self.kernel, padding=1)).relu().mean((2, 3))


def loss_and_gradient(network, strategy, x, y, criterion):
    mixed = strategy.mix(x, y, {})
    loss = strategy.loss(mixed, Output(logits=network(mixed.images)), Context(None, criterion))
    return loss, torch.autograd.grad(loss, network.kernel)[0]


@given(**SHAPES)
def test_every_image_and_its_mirror_image(count, size, seed):
    x, y = batch(count, size, seed)
    before, generator = (x.clone(), y.clone()), np.random.default_rng(0)
    state = generator.bit_generator.state
    assert FYI.draw(x, generator) == {}
    assert generator.bit_generator.state == state, "nothing is drawn"
    mixed = FYI.mix(x, y, {})
    assert torch.equal(mixed.images[:count], x)
    for column in range(size[1]):
        assert torch.equal(mixed.images[count:, :, :, column], x[:, :, :, size[1] - 1 - column])
    assert torch.equal(mixed.targets, torch.cat([y, y]))
    assert torch.equal(mixed.y_own, mixed.y_partner)
    assert mixed.partner.tolist() == list(range(2 * count))
    assert mixed.own_weight.tolist() == [1.0] * 2 * count
    assert torch.equal(mixed.own_mask, torch.ones(2 * count, 1, *size, dtype=y.dtype))
    assert torch.equal(x, before[0]), "the caller's tensors stay as they are"
    assert torch.equal(y, before[1])


@pytest.mark.parametrize("name", CRITERIA)
@given(**SHAPES)
def test_a_network_that_sees_no_mirror_learns_the_same(name, count, size, seed):
    (x, y), network = batch(count, size, seed), Network(symmetric=True)
    plain = loss_and_gradient(network, mix.create("none"), x, y, CRITERIA[name])
    both = loss_and_gradient(network, FYI, x, y, CRITERIA[name])
    torch.testing.assert_close(both[0], plain[0])
    along = [gradient + gradient.flip(3) for _, gradient in (both, plain)]  # the kernels that stay symmetric
    torch.testing.assert_close(*along, rtol=1e-6, atol=1e-7)


def test_another_network_learns_from_both():
    (x, y), network = batch(3, (7, 10), 1), Network(symmetric=False).eval()
    losses = [F.cross_entropy(network(images), y).detach() for images in (x, x.flip(3))]
    loss, _ = loss_and_gradient(network, FYI, x, y, F.cross_entropy)
    torch.testing.assert_close(loss.detach(), (losses[0] + losses[1]) / 2)
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("name", ["transmix", "lumix", "keepaugment", "hat", "oamixer", "dynamic_tokens"])
@pytest.mark.parametrize("inner", ["fyi", "choice: {strategies: [cutmix, fyi]}"])
def test_nothing_is_put_over_a_batch_that_grows(name, inner):
    options = {"mode": "paste"} if name == "keepaugment" else {}
    with pytest.raises(ConfigError, match=f"mix '{name}'.*cannot be put over FYI, whose batch grows"):
        mix.create(name, inner=inner, **options).check(None)


def test_it_may_be_one_of_several():
    x, y = batch(3, (5, 8), 0)
    strategy = mix.create("choice", strategies=["fyi", "cutmix"])
    draws = [strategy.draw(x, np.random.default_rng(seed)) for seed in range(8)]
    assert {len(strategy.mix(x, y, given).images) for given in draws} == {3, 6}
    strategy = mix.create("until", inner="fyi", epochs=1)
    counts = [len(strategy.mix(x, y, strategy.draw(x, None), Context(None, None, epoch=at)).images) for at in (0, 1)]
    assert counts == [6, 3]
