"""Mixup against what facebookresearch/mixup-cifar10 and timm 0.5.4 and 1.0.31 produced."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wsol import mix
from wsol.engine.losses import smooth

pytestmark = pytest.mark.parity
CLASSES = 10


def load(golden, name):
    arrays = dict(np.load(golden / "mix" / f"{name}.npz", allow_pickle=False))
    return arrays, [arrays[row["key"]] for row in json.loads(str(arrays["draws_json"]))]


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


@pytest.mark.parametrize("version", ["timm054", "timm1031"])
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixup_of_timm(golden, version, mode):
    arrays, draws = load(golden, f"{version}_{mode}_mixup")
    x, y = torch.from_numpy(arrays["x"]), smooth(one_hot(arrays["y"]), 0.1, multi_label=False)
    lam = draws[1] if mode == "batch" else draws[0]
    if mode == "pair":
        lam = np.concatenate([lam, lam[::-1]])
    flip = np.arange(len(x))[::-1].copy()
    result = mix.create("mixup", alpha=0.8, partner="flip", mode=mode).mix(x, y, {"lam": lam, "partner": flip})
    np.testing.assert_allclose(result.images.numpy(), arrays["mixed"], atol=1e-6)
    np.testing.assert_allclose(result.targets.numpy(), arrays["target"], atol=1e-6)
