"""Taps: the right tensors, the right gradients, and nothing left behind."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from wsol.errors import ModelError
from wsol.models.taps import evaluating, producer, tap


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=5, dynamic_img_size=True).eval()


@pytest.fixture
def cnn():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=5).eval()


def fingerprint(module: nn.Module) -> list[object]:
    """Everything a tap could leave behind."""
    state: list[object] = [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_rng_state().tolist()]
    for name, item in module.named_modules():
        state.append((name, item.training, getattr(item, "fused_attn", None), sorted(vars(item))))
        state.append((len(item._forward_hooks), len(item._forward_pre_hooks), len(item._backward_hooks)))
    for name, parameter in module.named_parameters():
        state.append((name, parameter.requires_grad, parameter.grad is None, float(parameter.detach().sum())))
    return state


def images(*size: int) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("fail", [False, True])
def test_everything_is_as_found_also_after_an_exception(vit, gradients, fail):
    vit.train()
    vit.blocks[1].eval()
    vit.blocks[2].attn.fused_attn = False
    next(vit.parameters()).requires_grad_(False)
    before = fingerprint(vit)
    names = [f"blocks.{at}.attn" for at in (1, 2, 5)]

    def work() -> None:
        with tap(vit, activations=["norm"], attention=names, gradients=gradients), evaluating(vit):
            vit(images(64, 96)).sum()
            assert [vit.blocks[at].attn.fused_attn for at in (0, 1, 2, 5)] == [vit.blocks[0].attn.fused_attn] + [
                False
            ] * 3
            if fail:
                raise KeyError("in the block")

    if fail:
        with pytest.raises(KeyError):
            work()
    else:
        work()
    assert fingerprint(vit) == before


def test_an_error_while_hooking_undoes_the_first_hooks(vit):
    before = fingerprint(vit)
    with (
        pytest.raises(ModelError, match=r"no layer 'blocks.5.atn'.*did you mean 'blocks.5.attn'"),
        tap(vit, activations=["norm"], attention=["blocks.4.attn", "blocks.5.atn"]),
    ):
        pass
    with pytest.raises(ModelError, match="is no attention"), tap(vit, attention=["blocks.4.attn", "norm"]):
        pass
    assert fingerprint(vit) == before


def test_attention_is_softmax_of_queries_and_keys_and_the_output_unchanged(vit):
    x, seen = images(64, 96), {}
    handle = vit.blocks[3].attn.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    with torch.no_grad():
        plain = vit(x)
    handle.remove()
    with tap(vit, attention=["blocks.3.attn"]) as tapped, torch.no_grad():
        logits = vit(x)
    attn = vit.blocks[3].attn
    batch, tokens, width = seen["x"].shape
    heads = attn.num_heads
    qkv = attn.qkv(seen["x"]).reshape(batch, tokens, 3, heads, width // heads)
    expected = torch.stack(
        [
            torch.stack(
                [(qkv[b, :, 0, h] @ qkv[b, :, 1, h].T * (width // heads) ** -0.5).softmax(-1) for h in range(heads)]
            )
            for b in range(batch)
        ]
    )
    torch.testing.assert_close(tapped.attention["blocks.3.attn"], expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-5)


def test_attention_is_taken_before_dropout(vit):
    vit.train()
    vit.blocks[0].attn.attn_drop.p = 0.9
    with tap(vit, attention=["blocks.0.attn"]) as tapped, torch.no_grad():
        vit(images(64, 64))
    torch.testing.assert_close(tapped.attention["blocks.0.attn"].sum(-1), torch.ones(2, 2, 17))


def test_gradients_equal_those_of_a_full_graph(cnn):
    x, seen = images(64, 96), {}
    handle = cnn.layer3.register_forward_hook(lambda m, a, out: seen.update(out=out))
    full = torch.autograd.grad(cnn(x)[:, 2].sum(), seen["out"])[0]
    handle.remove()
    with tap(cnn, activations=["layer3"], gradients=True) as tapped:
        score = cnn(x)[:, 2].sum()
        assert tapped.activations["layer3"].is_leaf, "nothing is recorded below the layer"
        ours = torch.autograd.grad(score, tapped.activations["layer3"])[0]
    torch.testing.assert_close(ours, full, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(tapped.activations["layer3"].detach(), seen["out"])
    assert all(parameter.grad is None for parameter in cnn.parameters())


def test_gradients_of_attention_in_several_blocks(vit):
    vit.requires_grad_(False)
    names = ["blocks.2.attn", "blocks.4.attn"]
    with tap(vit, attention=names, gradients=True) as tapped:
        score = vit(images(64, 64))[:, 1].sum()
        gradients = torch.autograd.grad(score, [tapped.attention[name] for name in names])
    shift = 1e-3 * torch.sign(gradients[0])

    def perturbed(sign: float) -> torch.Tensor:
        handle = vit.blocks[2].attn.attn_drop.register_forward_hook(lambda m, a, out: out + sign * shift)
        vit.blocks[2].attn.fused_attn = False
        with torch.no_grad():
            score = vit(images(64, 64))[:, 1].sum()
        handle.remove()
        return score

    slope = (perturbed(1) - perturbed(-1)) / 2e-3
    torch.testing.assert_close(slope, gradients[0].abs().sum(), rtol=0.02, atol=1e-3)
    assert gradients[1].abs().sum() > 0


def test_gradients_inside_no_grad_and_inference_mode(cnn):
    for outer in (torch.no_grad(), torch.inference_mode()):
        with outer, tap(cnn, activations=["layer4"], gradients=True) as tapped:
            score = cnn(torch.ones(1, 3, 64, 64)).sum()
            assert torch.autograd.grad(score, tapped.activations["layer4"])[0].abs().sum() > 0


def test_in_place_layers_do_not_change_what_was_kept():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))
    x = images(9, 13)
    raw = module[0](x).detach()
    assert (raw < 0).any()
    for gradients in (False, True):
        with tap(module, activations=["0"], gradients=gradients) as tapped:
            out = module(x)
            if gradients:
                torch.autograd.grad(out.sum(), tapped.activations["0"])
        torch.testing.assert_close(tapped.activations["0"].detach(), raw)


def test_training_beside_a_tap_goes_on(vit):
    with tap(vit, attention=["blocks.5.attn"], activations=["blocks.0"]) as tapped:
        vit(images(64, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in vit.parameters())
    assert not tapped.attention["blocks.5.attn"].requires_grad
    assert not tapped.activations["blocks.0"].requires_grad


def test_autocast_weights_keep_their_gradients_after_a_tap():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    x = torch.randn(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with tap(module, activations=["0"], gradients=True):
            module(x)
        module(x).float().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_reduce_and_its_limit(vit):
    with tap(vit, attention=["blocks.5.attn"], reduce=lambda weights: weights.mean(1)) as tapped:
        vit(images(64, 64))
    assert tapped.attention["blocks.5.attn"].shape == (2, 17, 17)
    with pytest.raises(ValueError, match="reduced"), tap(vit, attention=["norm"], gradients=True, reduce=torch.sum):
        pass


def test_a_layer_that_gives_no_tensor_is_named():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = Pair()

        def forward(self, x):
            return self.pair(x)[0]

    with pytest.raises(ModelError, match="'pair' gives a tuple"), tap(model := Model(), activations=["pair"]):
        model(torch.ones(1))


def test_producer_names_the_outermost_module_or_none(cnn):
    with torch.no_grad():
        _, name = producer(cnn, lambda: cnn.forward_features(images(64, 64)))
        assert name == "layer4"
        _, name = producer(cnn, lambda: cnn.forward_features(images(64, 64)).flatten(2))
    assert name is None
