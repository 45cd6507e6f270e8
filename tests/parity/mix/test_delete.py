"""Strategies that hide parts of images against what the papers' code produced."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from wsol import mix
from wsol.mix.random_erasing import erased_sides

pytestmark = pytest.mark.parity


def load(golden, name):
    arrays = dict(np.load(golden / "mix" / f"{name}.npz", allow_pickle=False))
    return arrays, [arrays[row["key"]] for row in json.loads(str(arrays["draws_json"]))]


def hidden_by(name, x, draws, **options):
    images = torch.from_numpy(x if x.ndim == 4 else x[None])
    result = mix.create(name, **options).mix(images, torch.ones(len(images), 1), draws)
    assert torch.equal(result.images == images, result.own_mask.bool().expand(images.shape))
    return result.images.numpy().reshape(x.shape)


def test_cutout(golden):
    arrays, draws = load(golden, "cutout")
    centres = np.array(draws, dtype=int).reshape(1, -1, 2)
    length = 9 / min(arrays["x"].shape[1:])
    out = hidden_by("cutout", arrays["x"], {"centre": centres}, holes=centres.shape[1], length=length)
    assert np.array_equal(out, arrays["out"])


def test_random_erasing(golden):
    arrays, (_, *_, share, aspect, top, left) = load(golden, "random_erasing")  # the last try is the one that fits
    height, width = erased_sides(arrays["x"].shape[1:], float(share), float(aspect))
    box = (int(top), int(left), int(top) + height, int(left) + width)
    mean = np.array([0.4914, 0.4822, 0.4465], dtype=np.float32)[None, :, None, None]
    out = hidden_by("random_erasing", arrays["x"], {"boxes": [box], "fill": mean})
    assert np.array_equal(out, arrays["out"])


def test_hide_and_seek(golden):
    arrays, draws = load(golden, "has_clovaai")
    count, _, height, width = arrays["x"].shape
    hidden = np.array(draws).reshape(count, -(-height // 8), -(-width // 8)) <= 0.5
    out = hidden_by("hide_and_seek", arrays["x"], {"cell": np.full(count, 8), "hidden": list(hidden)})
    assert np.array_equal(out, arrays["out"])


@pytest.mark.parametrize("case", [0, 1])
def test_gridmask(golden, case):
    arrays, draws = load(golden, f"gridmask_{case}")
    names = ("u", "distance", "top", "left", "angle")
    given = {name: np.array([value]) for name, value in zip(names, draws, strict=True)}
    out = hidden_by("gridmask", arrays["x"], given, prob=1.0)
    assert np.array_equal(out, arrays["out"])
