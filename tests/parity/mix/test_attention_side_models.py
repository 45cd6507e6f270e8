"""OAMixer and DynamicViT against what the authors' code produced."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from torch import nn

from wsol.mix._divergence import divergence
from wsol.mix.dynamic_tokens import kept_token_loss, ratio_loss
from wsol.models._wrapped import rewritten
from wsol.models.dynamic_tokens import DynamicTokens, Predictor, masked_attention
from wsol.models.object_aware import ObjectAware

pytestmark = pytest.mark.parity


def load(golden, folder, name):
    return dict(np.load(golden / folder / f"{name}.npz", allow_pickle=False))


def close(ours, theirs, atol=1e-5):
    np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=0, atol=atol)


def tensors(arrays, prefix, inner=""):
    return {
        inner + name[len(prefix) :]: torch.from_numpy(item) for name, item in arrays.items() if name.startswith(prefix)
    }


class Lone(nn.Module):
    """A model of one attention."""

    num_prefix_tokens = 1

    def __init__(self, weights):
        super().__init__()
        self.block = nn.Module()
        dim = weights["proj.bias"].numel()
        self.block.attn = Attention(dim, num_heads=1, qkv_bias=True)
        self.block.attn.load_state_dict(weights)
        self.blocks = [self.block]

    def forward_features(self, x):
        return self.block.attn(x)


def check_oamixer(arrays, weights, *, distance, kernel, kappa, mask, out):
    heads = mask.shape[1]
    model = ObjectAware(Lone(weights), distance=distance, kernel=kernel)
    attention = model.base.block.attn
    attention.num_heads, attention.head_dim = heads, attention.qkv.in_features // heads
    attention.scale = attention.head_dim**-0.5
    with torch.no_grad():
        model.kappa.fill_(kappa)
    labels = torch.from_numpy(arrays["patch_class"])
    from wsol.models.object_aware import patch_distance

    close(model.similarity(0, patch_distance(labels, distance=distance)), mask[:, 0])
    with model.labelled(labels):
        close(model.forward_features(torch.from_numpy(arrays["x"])), out, atol=2e-5)


@pytest.mark.parametrize("case", ["cos_exp", "cos_exp_zero", "cos_minus", "l1_exp"])
def test_oamixer(golden, case):
    arrays = load(golden, "mix", f"oamixer_{case}")
    weights = tensors(arrays, "w__")
    kappa = float(weights.pop("mask_scale"))
    distance, kernel = case.split("_")[:2]
    check_oamixer(
        arrays,
        weights,
        distance={"cos": "cosine"}.get(distance, distance),
        kernel=kernel,
        kappa=kappa,
        mask=arrays["mask"],
        out=arrays["out"],
    )


@pytest.mark.parametrize(
    ("distance", "kernel", "kappa"), list(itertools.product(["l1", "cosine"], ["exp", "minus"], [0.0, 0.7]))
)
def test_oamixer_again(golden, distance, kernel, kappa):
    arrays = load(golden, "other", "oamixer")
    case = f"{distance}_{kernel}_{kappa}"
    out, mask = arrays[f"out_{case}"], arrays[f"mask_{case}"]
    check_oamixer(arrays, tensors(arrays, "w."), distance=distance, kernel=kernel, kappa=kappa, mask=mask, out=out)


def test_oamixer_of_an_mlp_mixer(golden):
    arrays = load(golden, "other", "oamixer")
    mlp = nn.Module()
    mlp = timm.layers.Mlp(9, 12)
    mlp.load_state_dict(tensors(arrays, "mixer_w."))
    base = nn.Module()
    base.blocks = [SimpleNamespace(mlp_tokens=mlp)]
    base.forward_features = lambda x: mlp(x)
    model = ObjectAware(base)
    with torch.no_grad():
        model.kappa.fill_(0.7)
    with model.labelled(torch.from_numpy(arrays["patch_class"])):
        close(model.forward_features(torch.from_numpy(arrays["mixer_x"])), arrays["mixer_out"], atol=2e-5)


def test_attention_with_policy(golden):
    arrays = load(golden, "other", "dynamicvit")
    policy = torch.from_numpy(arrays["P_policy"])[..., 0]
    close(masked_attention(torch.from_numpy(arrays["P_raw"]).softmax(-1), policy), arrays["P_attn"])
    arrays = load(golden, "mix", "dynamicvit")
    x, policy = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["policy"])[..., 0]
    weights = tensors(arrays, "w_attn__")
    fits = []
    for heads in (1, 2, 3, 4):
        attention = Attention(12, num_heads=heads, qkv_bias=True)
        attention.load_state_dict(weights)
        if np.allclose(attention(x).detach().numpy(), arrays["attn_out_none"], atol=1e-5):
            with rewritten([attention], lambda _, weights: masked_attention(weights, policy)):
                close(attention(x), arrays["attn_out_policy"])
            assert not np.allclose(arrays["attn_out_policy"], arrays["attn_out_none"], atol=1e-3)
            fits.append(heads)
    assert fits == [3]


def test_predictor(golden):
    arrays = load(golden, "mix", "dynamicvit")
    predictor = Predictor(16)
    predictor.load_state_dict(tensors(arrays, "w_pred__"))
    scores = predictor(torch.from_numpy(arrays["pred_in"]), torch.from_numpy(arrays["prev_decision"])[..., 0])
    close(scores, arrays["pred_logp"])


@pytest.mark.parametrize("gather", [True, False])
def test_pruned_network(golden, gather):
    arrays = load(golden, "other", "dynamicvit")
    shape = {"embed_dim": 32, "depth": 4, "num_heads": 4, "mlp_ratio": 2, "num_classes": 6}
    base = timm.create_model("deit_tiny_patch16_224", **shape)
    stages = tuple(arrays["pruning_loc"].tolist())
    model = DynamicTokens(base, stages=stages, gather=gather).eval()
    assert model.ratios == pytest.approx(arrays["ratios"].tolist())
    weights = tensors(arrays, "w.")
    names = {name: name.replace("score_predictor", "predictors") for name in weights}
    renamed = {new if new.startswith("predictors") else f"base.{new}": weights[old] for old, new in names.items()}
    model.load_state_dict(renamed)
    images = torch.from_numpy(arrays["img"]).float()
    with torch.no_grad():
        seen = model.run(images)
        close(model.forward_head(seen.tokens), arrays["logits"], atol=2e-5)
    for stage, (kept, scores) in enumerate(zip(seen.decisions, seen.scores, strict=True)):
        expected = arrays[f"kept_abs{stage}"]
        for row, ids in enumerate(expected):
            assert sorted(ids) == kept[row].nonzero().flatten().tolist()
        if stage == 0:
            close(scores, arrays["pred_logprob0"][..., 0], atol=2e-5)
            assert np.array_equal(scores.argsort(1, descending=True)[:, : expected.shape[1]].numpy(), expected)


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_loss_of_dynamicvit(golden, kind):
    arrays = load(golden, "other", "dynamicvit")
    given = {name: torch.from_numpy(item) for name, item in arrays.items() if name.startswith("Lo_")}
    parts = (
        F.cross_entropy(given["Lo_pred"], given["Lo_lab"]),
        ratio_loss(tuple(given["Lo_dec"]), arrays["Lo_keep"].tolist()),
        divergence(given["Lo_pred"], given["Lo_cls_t"], multi_label=False),
        kept_token_loss(given["Lo_tok"], given["Lo_tok_t"], given["Lo_mask"], kind=kind),
    )
    expected = arrays[f"Lo_parts_{kind}"] / [1, 3, 1, 1]  # the reference reports the sum over the stages
    np.testing.assert_allclose([part.item() for part in parts], expected, atol=2e-5)
    total = sum(part * weight for part, weight in zip(parts, (1, 2, 0.5, 0.5), strict=True))
    close(total, arrays[f"Lo_{kind}"], atol=2e-5)
