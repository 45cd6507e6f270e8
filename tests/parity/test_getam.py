"""GETAM's map and label completion, and PAR, against what the papers' own code produced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from wsol.cams.getam import gradient_attention
from wsol.refine import chain, with_background
from wsol.refine.getam_completion import complete_labels
from wsol.refine.par import par

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(("image", "start"), [(1, 6), (0, 0)])
def test_the_map_equals_the_original(golden: Path, image: int, start: int) -> None:
    with np.load(golden / "wsss" / "getam_cases.npz") as file:
        attention, gradient = torch.from_numpy(file["attn"]), torch.from_numpy(file["grad"])
        expected = file[f"getam_b{image}_s{start}"]
    got = gradient_attention(zip(attention[start:], gradient[start:], strict=True))
    np.testing.assert_allclose(got[image, 0, 1:], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", range(4))
def test_the_completed_labels_equal_the_original(golden: Path, case: int) -> None:
    with np.load(golden / "wsss" / "getam_cases.npz") as file:
        maps, present, saliency, expected, salient = (
            file[f"{name}_{case}"] for name in ("cam", "cls", "sal", "label", "sal_out")
        )
    ids = np.flatnonzero(present)
    scores = with_background(maps[ids], alpha=32)
    labels, completed = complete_labels(scores, ids, saliency > 0, quantile=0.9)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(completed, salient == 255)
    again, _ = chain("getam_completion").label(scores, ids, saliency=saliency)
    np.testing.assert_array_equal(again, expected)


def test_par_equals_the_original(golden: Path) -> None:
    with np.load(golden / "wsss" / "pamr_par_160x120.npz") as file:
        image, masks, expected = file["image"], file["mask"], file["par10"]
    got = par(torch.from_numpy(image).permute(2, 0, 1)[None], torch.from_numpy(masks)).numpy()
    np.testing.assert_allclose(got, expected, atol=5e-6, rtol=0)
