"""TransMix, TokenMix, SMMix, TL-Align, AutoMix and HAT against what the authors' code (AutoMix: openmixup) produced."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wsol import mix
from wsol.mix._label_path import carry
from wsol.mix._mixblock import MixBlock
from wsol.mix._tokens import to_pixels
from wsol.mix.automix import area_loss
from wsol.mix.base import Context, Output
from wsol.mix.smmix import paste_windows
from wsol.mix.tokenmix import block_cells, random_cells

pytestmark = pytest.mark.parity
CLASSES = 10


def load(golden, name):
    return dict(np.load(golden / "mix" / f"{name}.npz", allow_pickle=False))


def smoothed(labels, amount=0.1):
    return F.one_hot(torch.from_numpy(labels), CLASSES).float() * (1 - amount) + amount / CLASSES


def close(ours, theirs, atol=1e-5):
    np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=0, atol=atol)


class Grid:
    """A classifier of which only the token grid is asked."""

    kind, module, device = "tokens", nn.Identity(), torch.device("cpu")

    def __init__(self, patch):
        self.patch = patch

    def grid(self, height, width):
        return height // self.patch, width // self.patch


@pytest.mark.parametrize("case", [0, 1])
def test_transmix(golden, case):
    arrays = load(golden, f"transmix_{case}")
    x, y = torch.from_numpy(arrays["x"]), smoothed(arrays["y"])
    lam, row, column = (arrays[f"draw_00{at}"] for at in (1, 2, 3))
    strategy = mix.create("transmix", inner="cutmix: {partner: flip}")
    draws = {"lam": float(lam), "centre": (int(row), int(column)), "partner": np.arange(len(x))[::-1].copy()}
    mixed = strategy.mix(x, y, draws)
    assert np.array_equal(mixed.images.numpy(), arrays["mixed"])
    close(mixed.targets, arrays["target_area"])
    close(mixed.y_partner, arrays["y2"])
    side = int(arrays["attn"].shape[1] ** 0.5)
    output = Output(logits=torch.zeros_like(y), attention=torch.from_numpy(arrays["attn"]), grid=(side, side))
    close(strategy.relabel(mixed, output), arrays["target_transmix"])


def as_blocks(arrays):
    """Turn the reference's draws (area, log aspect, and if it tries, top and left) into positions in their ranges."""
    rows, block = [], []
    for draw in json.loads(str(arrays["draws_json"])):
        if not draw["fn"].startswith("py."):
            continue
        value, (low, high) = float(arrays[draw["key"]]), eval(draw["args"])
        if draw["fn"] == "py.randint":
            block.append((value - low + 0.5) / (high - low + 1))
        elif (low, high) == (1, high) and high >= 1 and low == 1:  # a new block begins with its area
            rows.append([*block, 0.5, 0.5][:4] if block else None)
            block = [(value - low) / (high - low) if high > low else 0.0]
        else:
            block.append((value - low) / (high - low))
    rows.append([*block, 0.5, 0.5][:4])
    return np.array([row for row in rows if row])


@pytest.mark.parametrize("case", [0, 1, 2, 3])
def test_masks_of_tokenmix(golden, case):
    arrays = load(golden, f"tokenmix_mask_block_{case}")
    ours = block_cells(as_blocks(arrays), (14, 14))
    assert np.array_equal(ours, arrays["mask"][0, 0] > 0)
    assert 1 - ours.mean() == pytest.approx(float(arrays["lam"]))


def test_random_mask_of_tokenmix(golden):
    arrays = load(golden, "tokenmix_mask_random")
    ours = random_cells(np.argsort(arrays["draw_000"]).astype(float), (14, 14))
    assert np.array_equal(ours, arrays["mask"][0, 0] > 0)
    assert 1 - ours.mean() == pytest.approx(float(arrays["lam"]))


def test_tokenmix(golden):
    arrays = load(golden, "tokenmix_full_0")
    count = len(arrays["hard_label"])
    x = torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(int(arrays["x_seed"])))
    context = Context(Grid(16), F.cross_entropy, label_maps=torch.from_numpy(arrays["label_map"]))
    draws = {"blocks": as_blocks(arrays), "partner": np.arange(count)[::-1].copy()}
    mixed = mix.create("tokenmix", maps="teacher").mix(x, smoothed(arrays["hard_label"]), draws, context)
    close(mixed.targets, arrays["target"])
    close(mixed.images.mean((1, 2, 3)), arrays["mixed_mean"], atol=1e-6)
    assert np.array_equal(mixed.images[:, :, :32, :32].numpy(), arrays["mixed_crop"])


@pytest.mark.parametrize("case", [0, 1])
def test_windows_of_smmix(golden, case):
    arrays = load(golden, f"smmix_core_{case}")
    x, y = torch.from_numpy(arrays["x"]), smoothed(arrays["y"])
    window = tuple(arrays["rect"].tolist())
    partner = np.arange(len(x))[::-1].copy()
    side = int(arrays["attn"].shape[1] ** 0.5)
    images, own = paste_windows(x, torch.from_numpy(arrays["attn"]).view(-1, side, side), partner, window)
    assert np.array_equal(images.numpy(), arrays["mixed"])
    assert np.array_equal(own.flatten(1).numpy(), arrays["target_mask"])
    assert np.array_equal(~own.flatten(1).numpy(), arrays["source_mask"])
    weight = 1 - window[0] * window[1] / side**2
    assert weight == pytest.approx(float(arrays["lam"]))
    close(y * weight + y[partner] * (1 - weight), arrays["mixed_target"])
    close(y, arrays["target_target"])
    close(y[partner], arrays["source_target"])


def test_mixed_tokens_of_tl_align(golden):
    arrays = load(golden, "tlalign_mix_0")
    x, y = torch.from_numpy(arrays["x"]), smoothed(arrays["y"])
    lam, row, column = (arrays[f"draw_00{at}"] for at in (1, 2, 3))
    rows, columns = (side // 8 for side in x.shape[2:])
    centre = (int(row) + 0.5) / rows, (int(column) + 0.5) / columns
    draws = {"lam": float(lam), "centre": centre, "partner": np.arange(len(x))[::-1].copy()}
    mixed = mix.create("tl_align").mix(x, y, draws, Context(Grid(8), F.cross_entropy))
    assert np.array_equal(mixed.images.numpy(), arrays["mixed"])
    close(mixed.targets, arrays["label_embed"][:, 0])
    share = mixed.own_mask[:, 0, ::8, ::8].flatten(1)[..., None]
    close(share * mixed.y_own[:, None] + (1 - share) * mixed.y_partner[:, None], arrays["label_embed"][:, 1:])


def test_labels_through_the_blocks_of_tl_align(golden):
    arrays = load(golden, "tlalign_propagate")
    labels = torch.from_numpy(arrays["label_embed0"])
    for attention, expected in zip(arrays["attn_per_block"], arrays["labels_per_block"], strict=True):
        labels = carry(labels, torch.from_numpy(attention).mean(1))
        close(labels, expected)
    close(labels[:, 0], arrays["cls_label"])


@pytest.mark.parametrize("variant", ["automix", "samix"])
def test_masks_of_automix(golden, variant):
    arrays = load(golden, {"automix": "mixblock_automix", "samix": "mixblock_samix_like"}[variant])
    features, order, lam = torch.from_numpy(arrays["feat"]), arrays["index"], float(arrays["lam"])
    block = MixBlock(features.shape[1], variant=variant)
    weight = torch.from_numpy(arrays["w__value.weight"])
    block.value = nn.Conv2d(weight.shape[1], 1, 1)  # the reference's is linear in both
    names = {"value.weight": "value.weight", "value.bias": "value.bias"}
    names |= {f"query.{part}": f"query.conv.{part}" for part in ("weight", "bias")}
    block.load_state_dict({ours: torch.from_numpy(arrays[f"w__{theirs}"]) for ours, theirs in names.items()})
    size = arrays["mask"].shape[2:]
    mask = to_pixels(block(features, features[order], lam), size)
    close(mask[:, 0], arrays["mask"][:, 1])
    close(area_loss(mask, lam), arrays["mask_loss_L1"])
    x = torch.randn(len(order), 3, *size, generator=torch.Generator().manual_seed(int(arrays["x_seed"])))
    images = x * (1 - mask) + x[order] * mask
    close(images[:, :, ::8, ::8], arrays["mixed_small"])


class Seen(nn.Module):
    """A network that remembers its inputs."""

    def __init__(self, arrays):
        super().__init__()
        hidden, inputs = arrays["w__1.weight"].shape
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, CLASSES))
        self.layers.load_state_dict(
            {name[3:]: torch.from_numpy(item) for name, item in arrays.items() if name.startswith("w__")}
        )
        self.inputs = []

    def forward(self, x):
        self.inputs.append(x.detach().clone())
        return self.layers(x)


def test_hat(golden):
    arrays = load(golden, "hat_step")
    module, losses = Seen(arrays), []
    classifier = Grid(8)
    classifier.module = module

    def backward(loss):
        losses.append(loss.item())
        loss.backward()

    x, target = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["target"])
    context = Context(classifier, F.cross_entropy)
    mix.create("hat", inner="none").step(x, target, {}, context, backward=backward)
    np.testing.assert_allclose(losses, arrays["losses"], atol=1e-4)
    assert len(module.inputs) == 4  # clean, and three passes; the reference also moves the last disturbance
    for seen, delta in zip(module.inputs[2:], arrays["deltas"], strict=False):
        close(seen - x, delta, atol=1e-6)
    for name, parameter in module.layers.named_parameters():
        close(parameter.grad, arrays[f"g__{name}"], atol=1e-4)
