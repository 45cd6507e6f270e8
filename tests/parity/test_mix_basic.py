"""Mixup and CutMix against what facebookresearch/mixup-cifar10, clovaai/CutMix-PyTorch and timm 1.0.31 produced."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wsol import mix
from wsol.engine.train import smooth
from wsol.mix.cutmix import cut_box

pytestmark = pytest.mark.parity
CLASSES = 10


def load(golden, name):
    arrays = dict(np.load(golden / "mix" / f"{name}.npz", allow_pickle=False))
    draws = [arrays[row["key"]] for row in json.loads(str(arrays["draws_json"]))] if "draws_json" in arrays else []
    return arrays, draws


def one_hot(labels):
    return F.one_hot(torch.from_numpy(labels), CLASSES).float()


def test_mixup(golden):
    arrays, (lam, order) = load(golden, "mixup_fb")
    strategy, x, y = mix.create("mixup"), torch.from_numpy(arrays["x"]), one_hot(arrays["y"])
    result = strategy.mix(x, y, {"lam": float(lam), "partner": order})
    assert np.array_equal(result.y_partner.argmax(1).numpy(), arrays["y_b"])
    np.testing.assert_allclose(result.images.numpy(), arrays["mixed"], atol=1e-6)
    loss = F.cross_entropy(torch.from_numpy(arrays["logits"]), result.targets)
    assert loss.item() == pytest.approx(float(arrays["loss"]), abs=1e-6)


@pytest.mark.parametrize("case", ["a", "b_nonsquare", "c_oddsize"])
def test_cutmix_of_the_paper(golden, case):
    arrays, (lam, order, row, column) = load(golden, f"cutmix_clovaai_{case}")
    x, y = torch.from_numpy(arrays["x"]), one_hot(arrays["y"])
    draws = {"lam": float(lam), "centre": (int(row), int(column)), "partner": order}
    result = mix.create("cutmix").mix(x, y, draws)
    assert np.array_equal(result.images.numpy(), arrays["mixed"])
    assert cut_box(tuple(x.shape[2:]), float(lam), draws["centre"]) == tuple(arrays["bbox"].tolist())
    weight = float(arrays["lam"])
    np.testing.assert_allclose(result.own_weight.numpy(), weight, atol=1e-7)
    np.testing.assert_allclose(result.targets.numpy(), (weight * y + (1 - weight) * y[order]).numpy(), atol=1e-6)


def test_boxes_of_the_paper(golden):
    arrays, _ = load(golden, "cutmix_clovaai_bbox_table")
    for height, width, lam, row, column, *box, corrected in arrays["rows"]:
        size = (int(height), int(width))
        top, left, bottom, right = cut_box(size, lam, (int(row), int(column)))
        assert (top, left, bottom, right) == tuple(box)
        assert 1 - (bottom - top) * (right - left) / (size[0] * size[1]) == pytest.approx(corrected, abs=1e-12)


def test_mixup_of_timm(golden):
    arrays, (_, lam) = load(golden, "timm1031_batch_mixup")
    x, y = torch.from_numpy(arrays["x"]), smooth(one_hot(arrays["y"]), 0.1, loss="ce")
    result = mix.create("mixup", alpha=0.8, partner="flip").mix(
        x, y, {"lam": float(lam), "partner": np.arange(len(x))[::-1].copy()}
    )
    np.testing.assert_allclose(result.images.numpy(), arrays["mixed"], atol=1e-6)
    np.testing.assert_allclose(result.targets.numpy(), arrays["target"], atol=1e-6)


@pytest.mark.parametrize("multi_label", [False, True])
def test_cutmix_of_timm(golden, multi_label):
    name = "timm1031_batch_both_multilabel" if multi_label else "timm1031_batch_cutmix"
    arrays, draws = load(golden, name)
    lam, row, column = draws[-3:]
    y = torch.from_numpy(arrays["y"]) if multi_label else one_hot(arrays["y"])
    y = smooth(y, 0.1, loss="bce" if multi_label else "ce")
    x = torch.from_numpy(arrays["x"])
    result = mix.create("cutmix", partner="flip", box="timm").mix(
        x,
        y,
        {"lam": float(lam), "centre": (int(row), int(column)), "partner": np.arange(len(x))[::-1].copy()},
    )
    assert np.array_equal(result.images.numpy(), arrays["mixed"])
    np.testing.assert_allclose(result.targets.numpy(), arrays["target"], atol=1e-6)
