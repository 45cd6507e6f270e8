"""Refiners against what the papers' own code and pydensecrf produced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from wsol.refine import create, to_labels, with_background
from wsol.refine.densecrf import caffe_wrap
from wsol.refine.pamr import pamr

pytestmark = pytest.mark.parity

NAMES = {
    "irn": "psa_irn_la",
    "clipes": "clip_es",
    "toco": "toco_seg",
    "afa": "afa_weclip_seg",
    "irn_label": "irn_label",
}


def log_in_half_precision(scores: np.ndarray) -> np.ndarray:
    """The scripts took the logarithm in the precision of the stored float16 scores."""
    return np.exp(np.log(np.clip(scores, 1e-5, 1)).astype(np.float32))


@pytest.mark.parametrize("preset", NAMES)
@pytest.mark.parametrize("channels", [2, 3, 5, 21])
def test_marginals_equal_pydensecrf(golden: Path, channels: int, preset: str) -> None:
    with np.load(golden / "wsss" / "dcrf_cases_160x120.npz") as file:
        image, scores = file["image"], file[f"prob_{channels}"]
        expected = file[f"marg_{channels}_{NAMES[preset]}"]
    scores = log_in_half_precision(scores)
    got = create("densecrf", preset=preset)(image, scores)
    np.testing.assert_allclose(got, expected, atol=2e-5, rtol=0)
    np.testing.assert_array_equal(got.argmax(0), expected.argmax(0))
    # "cpu:0" is the CPU by way of torch.
    got = create("densecrf", preset=preset, device="cpu:0")(image, scores)
    np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)
    np.testing.assert_array_equal(got.argmax(0), expected.argmax(0))


@pytest.mark.parametrize("model", ["tiny", "B16"])
def test_pseudo_labels_equal_clipes(golden: Path, model: str) -> None:
    with np.load(golden / "wsss" / f"clipes_{model}_voc.npz") as file:
        image, maps, keys = file["image_rgb_uint8"], file["attn_highres"], file["keys"]
        wrapped, full, confident, best = (
            file[name] for name in ("crf_image_uint8", "crf_label_full", "crf_label_cgl", "crf_max_prob")
        )
    np.testing.assert_array_equal(caffe_wrap(image), wrapped)
    background = 1 - maps.max(axis=0, keepdims=True)  # in float16, as the script does
    np.testing.assert_allclose(with_background(maps, alpha=1)[:1], background, atol=5e-4)
    scores = log_in_half_precision(np.concatenate([background, maps]))
    refined = create("densecrf", preset="clipes", image="caffe_wrap")(image, scores)
    labels, confidence = to_labels(refined, keys)
    np.testing.assert_array_equal(labels, full)
    np.testing.assert_allclose(confidence, best, atol=1e-3)
    assert (to_labels(refined, keys, min_confidence=0.95)[0] == confident).mean() > 0.9999


def test_pamr_equals_the_original(golden: Path) -> None:
    with np.load(golden / "wsss" / "pamr_par_160x120.npz") as file:
        image, masks, expected = file["image"], file["mask"], file["pamr10"]
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    got = pamr(pixels, torch.from_numpy(masks)).numpy()
    # Both are float32 and lie within 2.5e-6 of the result in float64, so they may differ by twice that.
    np.testing.assert_allclose(got, expected, atol=5e-6, rtol=0)
    refined = create("pamr")(image, masks[0])
    np.testing.assert_array_equal(refined.argmax(0), expected[0].argmax(0))
