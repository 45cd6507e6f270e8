"""R-Mix, SnapMix and Puzzle Mix against arrays that the authors' code produced, their random draws put in."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wsol.mix import Context
from wsol.mix._graph_cut import cut_quadratic
from wsol.mix._providers import input_gradient, saliency, weigh_features
from wsol.mix._transport import distances, transport, transport_plan
from wsol.mix.cutmix import cut_box
from wsol.mix.puzzlemix import PuzzleMix, block_saliency
from wsol.mix.rmix import mix_patches, pool
from wsol.mix.snapmix import inside, paste, percent_map, positive_classes, weigh

pytestmark = pytest.mark.parity
CLASSES = 10


def load(golden, name):
    arrays = dict(np.load(golden / "mix" / f"{name}.npz", allow_pickle=False))
    tensors = {key: torch.from_numpy(value) for key, value in arrays.items() if value.dtype.kind in "fi" and value.ndim}
    draws = [arrays[row["key"]] for row in json.loads(str(arrays["draws_json"]))] if "draws_json" in arrays else []
    return SimpleNamespace(**tensors), draws, arrays


def one_hot(labels):
    return F.one_hot(labels, CLASSES).float()


@pytest.mark.parametrize("case", [0, 1])
def test_patches_of_rmix(golden, case):
    kit, (order,), _ = load(golden, f"rmix_choose_top_{case}")
    weight = float(kit.dirichlet_w[0])
    result = mix_patches(kit.x, one_hot(kit.y), kit.saliency, kit.top_k, weight, order)
    np.testing.assert_allclose(result.images, kit.mixed, atol=1e-6)
    np.testing.assert_allclose(result.targets, kit.mixed_labels, atol=1e-6)


@pytest.mark.parametrize("case", [0, 1, 2])
def test_labels_that_do_not_match_their_pixels(golden, case):
    """The ablation "choose least" of the authors' code: ours give the labels of the pixels that it shows."""
    kit, (order,), _ = load(golden, f"rmix_choose_least_{case}")
    y, other = one_hot(kit.y), kit.x[order]
    share = ((kit.mixed - other) * (kit.x - other)).sum(1) / (kit.x - other).square().sum(1)
    own = share.nan_to_num(1.0).mean((1, 2))[:, None]
    shown = y * own + y[order] * (1 - own)
    assert (shown - kit.mixed_labels).abs().max() > 0.05, "the reference contradicts itself"
    result = mix_patches(kit.x, y, kit.saliency, kit.top_k, float(kit.dirichlet_w[0]), order)
    mask = result.own_mask
    np.testing.assert_allclose(result.images, kit.x * mask + other * (1 - mask), atol=1e-6)
    np.testing.assert_allclose(result.own_weight, mask.mean((1, 2, 3)), atol=1e-6)


def test_saliency_of_rmix(golden):
    kit, _, _ = load(golden, "rmix_saliency")
    inputs = kit.x[0, 0].numel() * 4
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(inputs, CLASSES))
    names = {"0.weight": "w__0.weight", "0.bias": "w__0.bias", "3.weight": "w__3.weight", "3.bias": "w__3.bias"}
    net.load_state_dict({key: getattr(kit, name) for key, name in names.items()})
    context = Context(SimpleNamespace(module=net), F.cross_entropy)
    y = one_hot(kit.y)
    scaled = input_gradient(context, kit.x, y, objective=lambda z, t: 2 * F.cross_entropy(z, t) / CLASSES)
    np.testing.assert_allclose(scaled, kit.input_grad, atol=1e-8, rtol=1e-4)
    np.testing.assert_allclose(kit.input_grad.square().mean(1).sqrt(), kit.saliency_px, atol=1e-8)
    # The factor of the loss goes with the sum.
    grid = kit.saliency_norm.shape[-1]
    np.testing.assert_allclose(pool(saliency(context, kit.x, y), grid), kit.saliency_norm, atol=1e-6)


def test_snapmix(golden):
    kit, (_, lam, lam_partner, order, row, column, row2, column2), _ = load(golden, "snapmix_0")
    y, size = one_hot(kit.y), tuple(kit.x.shape[2:])
    own = cut_box(size, float(lam), (int(row), int(column)))
    other = cut_box(size, float(lam_partner), (int(row2), int(column2)))
    result = paste(kit.x, y, own, other, order)
    np.testing.assert_allclose(result.images, kit.mixed, atol=1e-5)
    assert torch.equal(result.y_partner.argmax(1), kit.target_b)
    classes, labels = positive_classes(y)
    shares = inside(kit.spm, own, other)[:, None]
    targets = weigh(y, classes, labels, shares, order, covered=0.5)
    expected = y * kit.lam_a[:, None] + one_hot(kit.target_b) * kit.lam_b[:, None]
    np.testing.assert_allclose(targets, expected, atol=1e-5)


def test_semantic_percent_map(golden):
    kit, _, arrays = load(golden, "snapmix_spm")
    maps = weigh_features(kit.feat, kit.w, kit.b, kit.y[:, None])[:, 0]
    np.testing.assert_allclose(percent_map(maps, arrays["spm"].shape[1:]), kit.spm, atol=1e-7)


def test_transport_of_puzzlemix(golden):
    kit, _, _ = load(golden, "puzzlemix")
    side = kit.tmask.shape[-1]
    np.testing.assert_allclose(distances(side, like=kit.x), kit.cost4, atol=1e-6)
    assert torch.equal(transport_plan(kit.tmask[:, 0], kit.tgrad), kit.plan)
    np.testing.assert_allclose(transport(kit.x, kit.plan), kit.transported, atol=1e-6)


def test_puzzlemix(golden):
    """The library gco improves its masks until no swap helps; the exact cut must cost as little, or less."""
    kit, _, arrays = load(golden, "puzzlemix")
    order, lam, blocks = kit.index.numpy(), float(arrays["alpha"]), kit.tmask.shape[-1]
    strategy, y = PuzzleMix(fill=False, t_grid=blocks), one_hot(kit.index)
    still = PuzzleMix(transport=False)
    costs = still.costs(kit.x, kit.grad, lam, blocks, order)
    other = kit.x[order]
    theirs = ((kit.mixed_notransport - other) * (kit.x - other)).sum(1) / (kit.x - other).square().sum(1)
    theirs = F.adaptive_avg_pool2d(theirs[:, None], blocks)[:, 0].numpy()
    ours = np.stack([cut_quadratic(*case) for case in zip(*costs, strict=True)])
    labels = np.rint(2 * (1 - theirs)).astype(np.int64)
    for case in zip(*costs, labels, ours, strict=True):
        assert energy(*case[:3], case[4]) <= energy(*case[:3], case[3])
    draws = {"lam": lam, "blocks": blocks, "partner": order}
    same = (labels == ours).all((1, 2))
    for puzzle, mixed, ratio in (
        (still, kit.mixed_notransport, kit.ratio_notransport),
        (strategy, kit.mixed, kit.ratio),
    ):
        result = puzzle.puzzle(kit.x, y, draws, kit.grad, kit.x)
        np.testing.assert_allclose(result.images[same], mixed[same], atol=1e-5)
        np.testing.assert_allclose(result.own_weight[same], ratio[same], atol=1e-6)
    assert same.any()
    np.testing.assert_allclose(block_saliency(kit.grad, 1), 1.0, atol=1e-6)


def energy(unary, down, right, labels):
    """Four times the cost of a mask of three labels."""
    own = np.take_along_axis(unary, labels[None], 0).sum() * 4
    return own + (down * np.diff(labels, axis=0) ** 2).sum() + (right * np.diff(labels, axis=1) ** 2).sum()
