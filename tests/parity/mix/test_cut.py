"""Strategies that cut and paste against what the papers' code, timm and OpenMixup produced."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wsol import mix
from wsol.engine.losses import smooth
from wsol.mix._fine_grained import centre_surround
from wsol.mix.attentive_cutmix import attended
from wsol.mix.cutmix import cut_box
from wsol.mix.fmix import low_frequencies, top_share

pytestmark = pytest.mark.parity
CLASSES = 10


def load(golden, name):
    arrays = dict(np.load(golden / "mix" / f"{name}.npz", allow_pickle=False))
    draws = [arrays[row["key"]] for row in json.loads(str(arrays["draws_json"]))] if "draws_json" in arrays else []
    return arrays, draws


def one_hot(labels):
    return F.one_hot(torch.from_numpy(labels), CLASSES).float()


def check(result, arrays, *, share=None):
    """Compare with what a function returned: images, labels, mask of the partner and own share."""
    np.testing.assert_allclose(result.images.numpy(), arrays["mixed"], atol=1e-6)
    assert np.array_equal(result.y_own.argmax(1).numpy(), arrays["y_a"])
    assert np.array_equal(result.y_partner.argmax(1).numpy(), arrays["y_b"])
    np.testing.assert_allclose(1 - result.own_mask.numpy(), arrays["mask"], atol=1e-6)
    np.testing.assert_allclose(result.own_weight.numpy(), arrays["lam"] if share is None else share, atol=1e-6)


@pytest.mark.parametrize("case", ["a", "b_nonsquare", "c_oddsize"])
def test_cutmix_of_the_paper(golden, case):
    arrays, (lam, order, row, column) = load(golden, f"cutmix_clovaai_{case}")
    x, y = torch.from_numpy(arrays["x"]), torch.eye(CLASSES)[: len(arrays["x"])]
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


@pytest.mark.parametrize("version", ["timm054", "timm1031"])
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_cutmix_of_timm(golden, version, mode):
    arrays, draws = load(golden, f"{version}_{mode}_cutmix")
    lam, places = (draws[1], draws[2:]) if mode == "batch" else (draws[0], draws[2:])
    centre = np.reshape(np.array(places, dtype=int), (-1, 2))
    if mode == "pair":
        lam, centre = np.concatenate([lam, lam[::-1]]), np.concatenate([centre, centre[::-1]])
    check_timm(arrays, mode, version, {"lam": lam, "centre": centre})


@pytest.mark.parametrize("version", ["timm054", "timm1031"])
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_boxes_between_two_sizes(golden, version, mode):
    arrays, draws = load(golden, f"{version}_{mode}_minmax")
    places = np.reshape(np.array(draws[2:], dtype=int), (-1, 4))
    box = np.concatenate([places[:, 2:], places[:, 2:] + places[:, :2]], axis=1)
    box = np.concatenate([box, box[::-1]]) if mode == "pair" else box
    check_timm(arrays, mode, version, {"lam": np.full(len(box), 0.5), "box": box}, minmax=(0.2, 0.8))


def check_timm(arrays, mode, version, draws, **options):
    x, y = torch.from_numpy(arrays["x"]), smooth(one_hot(arrays["y"]), 0.1, multi_label=False)
    rule = "timm" if version == "timm1031" else "clovaai"
    draws = {**draws, "partner": np.arange(len(x))[::-1].copy()}
    result = mix.create("cutmix", partner="flip", box=rule, mode=mode, **options).mix(x, y, draws)
    assert np.array_equal(result.images.numpy(), arrays["mixed"])
    np.testing.assert_allclose(result.targets.numpy(), arrays["target"], atol=1e-6)


@pytest.mark.parametrize("name", ["timm054_batch_both", "timm1031_batch_both", "timm1031_batch_both_multilabel"])
def test_switch_of_timm(golden, name):
    arrays, draws = load(golden, name)
    multi_label = name.endswith("multilabel")
    y = torch.from_numpy(arrays["y"]) if multi_label else one_hot(arrays["y"])
    y, x = smooth(y, 0.1, multi_label=multi_label), torch.from_numpy(arrays["x"])
    lam, row, column = draws[-3:]
    given = {"lam": float(lam), "centre": (int(row), int(column)), "partner": np.arange(len(x))[::-1].copy()}
    rule = "timm" if name.startswith("timm1031") else "clovaai"
    result = mix.create("cutmix", partner="flip", box=rule).mix(x, y, given)
    assert np.array_equal(result.images.numpy(), arrays["mixed"])
    np.testing.assert_allclose(result.targets.numpy(), arrays["target"], atol=1e-6)


@pytest.mark.parametrize("case", [0, 1])
def test_resizemix(golden, case):
    arrays, (order, scale, column, row) = load(golden, f"resizemix_om_{case}")
    x, y = torch.from_numpy(arrays["x"]), one_hot(arrays["y"])
    draws = {"scale": float(scale), "centre": (int(row), int(column)), "partner": order}
    result = mix.create("resizemix").mix(x, y, draws)
    # The reference's mask has rows and columns exchanged: its ones are not where its pixels changed.
    check(result, arrays | {"mask": arrays["mask"].swapaxes(2, 3)})


@pytest.mark.parametrize("case", [0, 1])
def test_gridmix(golden, case):
    arrays, (lam, cells, _, share, aspect, order, right, down) = load(golden, f"gridmix_om_{case}")
    x, y = torch.from_numpy(arrays["x"]), one_hot(arrays["y"])
    result = mix.create("gridmix").mix(
        x,
        y,
        {
            "lam": float(lam),
            "cells": int(cells),
            "area": float(share),
            "aspect": float(aspect),
            "place": (float(down), float(right)),
            "partner": order,
        },
    )
    check(result, arrays)


@pytest.mark.parametrize("case", [0, 1])
def test_smoothmix_whose_reference_swaps_the_weights(golden, case):
    arrays, (_, order, column, row, u) = load(golden, f"smoothmix_om_{case}")
    x, y = torch.from_numpy(arrays["x"]), one_hot(arrays["y"])
    draws = {"centre": (int(row[0]), int(column[0])), "sigma": float(u[0]) / 4 + 0.25, "partner": order}
    result = mix.create("smoothmix").mix(x, y, draws)
    # OpenMixup returns the share of the partner where its loss takes that of the own image; pixels decide.
    check(result, arrays, share=1 - arrays["lam"])
    assert float(result.own_mask.mean()) == pytest.approx(1 - float(arrays["lam"]), abs=1e-6)


@pytest.mark.parametrize("case", ["hard32", "soft32", "rect"])
def test_fmix(golden, case):
    arrays, (noise, u) = load(golden, f"fmix_{case}")
    expected, lam = arrays["mask"][0], float(arrays["lam"])
    max_soft = {"soft32": 0.3}.get(case, 0.0)
    grey = low_frequencies(noise[0], expected.shape, decay=3.0, compat=True)
    mask = top_share(grey, lam, up=bool(u > 0.5), max_soft=max_soft)
    np.testing.assert_allclose(mask, expected, atol=1e-6)


def test_fmix_threshold(golden):
    arrays, _ = load(golden, "fmix_binarise")
    lam, masks = float(arrays["lam"]), []
    for up in (False, True):
        masks.append(top_share(arrays["grey"][0], lam, up=up))
    assert any(np.array_equal(mask, arrays["mask"][0]) for mask in masks)


def test_attentive_cutmix(golden):
    arrays, (_, order) = load(golden, "attentivemix_om")
    x, features = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["features"])
    cells = features.shape[2] * features.shape[3]
    kept = round(float(arrays["lam"]) * cells)
    mask = attended(features, tuple(x.shape[2:]), share=kept / cells)
    assert np.array_equal(mask.numpy(), arrays["mask"])
    np.testing.assert_allclose((x * mask + x[order] * (1 - mask)).numpy(), arrays["mixed"], atol=1e-6)


def test_saliencymix(golden):
    arrays, _ = load(golden, "saliencymix_bbox")
    # OpenCV got floats: it blurs and sums those, but reads their first bytes as the pixels in the centres.
    grey = cv2.cvtColor(arrays["img"].transpose(1, 2, 0).copy(), cv2.COLOR_BGR2GRAY)
    grey = cv2.GaussianBlur(cv2.GaussianBlur(grey, (3, 3), 0), (3, 3), 0)
    read = grey.view(np.uint8)[:, : grey.shape[1]].astype(float)
    saliency = centre_surround(read, cv2.integral(grey.astype(float))) % 256  # bytes run over
    np.testing.assert_allclose(saliency / 255, arrays["saliency_map"], atol=1e-6)
    row, column = divmod(int(saliency.argmax()), saliency.shape[1])
    assert cut_box(saliency.shape, float(arrays["lam"]), (row, column)) == tuple(arrays["bbox"].tolist())


@pytest.mark.parametrize("mode", ["pair", "elem"])
def test_timm_that_switches_by_image(golden, mode):
    """What each image became, mixup or cutmix, is what the two strategies make of it."""
    arrays, (u, lam_cutmix, lam_mixup, prob, *places) = load(golden, f"timm054_{mode}_both")
    cuts, centre = u < 0.5, np.zeros((len(u), 2), dtype=int)
    assert prob.max() < 1.0
    centre[cuts] = np.reshape(np.array(places, dtype=int), (-1, 2))
    both = [np.where(cuts, lam_cutmix, 1.0), np.where(cuts, 1.0, lam_mixup), centre, cuts]
    if mode == "pair":
        both = [np.concatenate([values, values[::-1]]) for values in both]
    cut, lam, centre, cuts = both
    x, y = torch.from_numpy(arrays["x"]), smooth(one_hot(arrays["y"]), 0.1, multi_label=False)
    flip, cuts = np.arange(len(x))[::-1].copy(), torch.from_numpy(cuts)
    pasted = mix.create("cutmix", mode=mode).mix(x, y, {"lam": cut, "centre": centre, "partner": flip})
    added = mix.create("mixup", mode=mode).mix(x, y, {"lam": lam, "partner": flip})
    images = torch.where(cuts[:, None, None, None], pasted.images, added.images)
    np.testing.assert_allclose(images.numpy(), arrays["mixed"], atol=1e-6)
    targets = torch.where(cuts[:, None], pasted.targets, added.targets)
    np.testing.assert_allclose(targets.numpy(), arrays["target"], atol=1e-6)
