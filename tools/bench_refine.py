"""Time the refiners against their peers, interleaved in one run.

Dense CRF: pydensecrf2, where it can be imported (a case is skipped, and said so, where it cannot). PAMR: the usual
implementation that holds all 48 neighbours of every channel at once, written below. A ratio above 1 means that ours
is faster; one thread each; medians; peaks are resident memory above what was held before (Linux, else null).

    python tools/bench_refine.py [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from wsol.refine import create, with_background
from wsol.refine.densecrf import PRESETS

SIZE = (375, 500)
CRF_CASES = [
    ("clipes", 2), ("irn", 2), ("toco", 2), ("clipes", 3), ("irn", 3), ("irn", 5), ("clipes", 21), ("irn", 21)
]  # fmt: skip
QUICK = {("clipes", 2), ("irn", 3), ("clipes", 21)}
Refine = Callable[[], NDArray[np.float32]]


def photo() -> NDArray[np.uint8]:
    """Return a photo of scikit-image at the size of VOC, or a synthetic scene where the package is missing."""
    if find_spec("skimage"):
        from skimage.data import chelsea

        return np.array(cv2.resize(chelsea(), SIZE[::-1], interpolation=cv2.INTER_AREA))
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    return np.array(cv2.GaussianBlur(noise, (0, 0), 4)) // 2 + noise // 40


def blurry_scores(channels: int) -> NDArray[np.float32]:
    """Return smooth maps of C - 1 classes with their background, as class activation maps are."""
    rng = np.random.default_rng(channels)
    maps = np.stack([cv2.GaussianBlur(rng.random(SIZE, np.float32), (0, 0), 30) for _ in range(channels - 1)])
    return with_background((maps - maps.min()) / (maps.max() - maps.min()), alpha=1)


def pydensecrf(image: NDArray[np.uint8], scores: NDArray[np.float32], preset: Any) -> NDArray[np.float32]:
    """Return the marginals of the C++ library for the same energy."""
    from pydensecrf.densecrf import DenseCRF2D

    setting = PRESETS[preset]
    crf = DenseCRF2D(image.shape[1], image.shape[0], len(scores))
    crf.setUnaryEnergy(np.ascontiguousarray(-np.log(np.clip(scores, 1e-5, 1)).reshape(len(scores), -1)))
    crf.addPairwiseGaussian(sxy=setting.sxy_gaussian, compat=setting.compat_gaussian)
    crf.addPairwiseBilateral(sxy=setting.sxy_bilateral, srgb=setting.srgb, rgbim=image, compat=setting.compat_bilateral)
    return np.array(crf.inference(setting.iterations)).reshape(scores.shape)


@torch.no_grad()
def usual_pamr(image: NDArray[np.uint8], scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """PAMR with dilated convolutions over one-hot kernels and all neighbours stacked, as usually written."""
    dilations, taps = (1, 2, 4, 8, 12, 24), [0, 1, 2, 3, 5, 6, 7, 8]
    eye = torch.eye(9).view(9, 1, 3, 3)

    def neighbours(values: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        planes = values.transpose(0, 1)
        stacked = [
            functional.conv2d(functional.pad(planes, [d] * 4, mode="replicate"), kernel, dilation=d) for d in dilations
        ]
        return torch.cat(stacked, dim=1)

    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    deviation = neighbours(pixels, eye).std(1, keepdim=True)
    difference = (neighbours(pixels, eye[taps]) - pixels.transpose(0, 1)).abs()
    affinity = (-difference / (1e-8 + 0.1 * deviation)).mean(0, keepdim=True).softmax(1)
    masks = torch.from_numpy(scores)[None]
    for _ in range(10):
        masks = (neighbours(masks, eye[taps]) * affinity).sum(1)[None]
    return masks[0].numpy()


def peak_mb(function: Refine) -> float | None:
    """Return how far a call raises the resident memory."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")
        before = _field(status, "VmRSS")
        function()
        return round((_field(status, "VmHWM") - before) / 1024, 1)
    except OSError:
        return None


def _field(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))


def compare(name: str, ours: Refine, peer: Refine, *, rounds: int, tolerance: float) -> dict[str, Any]:
    """Time both, taking turns, after one warm-up each that is also compared."""
    difference = float(np.abs(ours() - peer()).max())
    times: dict[Refine, list[float]] = {ours: [], peer: []}
    for _ in range(rounds):
        for function, spent in times.items():
            start = time.perf_counter()
            function()
            spent.append(1000 * (time.perf_counter() - start))
    ours_ms, peer_ms = statistics.median(times[ours]), statistics.median(times[peer])
    return {
        "case": name,
        "ours_ms": round(ours_ms, 1),
        "peer_ms": round(peer_ms, 1),
        "ratio": round(peer_ms / ours_ms, 2),
        "ours_peak_mb": peak_mb(ours),
        "peer_peak_mb": peak_mb(peer),
        "equal": difference <= tolerance,
        "max_difference": difference,
        "tolerance": tolerance,
    }


def main() -> None:
    """Run the cases and print or write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer cases and rounds, below a minute")
    parser.add_argument("--json", type=Path, help="write the result here as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    image, cases, skipped = photo(), [], []
    for preset, channels in CRF_CASES:
        name = f"densecrf {preset} C={channels} {SIZE[1]}x{SIZE[0]}"
        if args.quick and (preset, channels) not in QUICK:
            continue
        if not find_spec("pydensecrf"):
            skipped.append(f"{name}: pydensecrf cannot be imported (pip install pydensecrf2)")
            continue
        crf, scores = create("densecrf", preset=preset), blurry_scores(channels)
        cases.append(
            compare(
                name,
                lambda crf=crf, scores=scores: crf(image, scores),
                lambda preset=preset, scores=scores: pydensecrf(image, scores, preset),
                rounds=5 if args.quick else 15 if channels < 10 else 7,
                tolerance=1e-4,
            )
        )
    refiner, scores = create("pamr"), blurry_scores(2)
    cases.append(
        compare(
            f"pamr C=2 {SIZE[1]}x{SIZE[0]}",
            lambda: refiner(image, scores),
            lambda: usual_pamr(image, scores),
            rounds=2 if args.quick else 5,
            tolerance=1e-5,
        )
    )
    versions = {name: version(name) for name in ("numpy", "numba", "torch")}
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "threads": 1, **versions}
    result = json.dumps({"machine": machine, "cases": cases, "skipped": skipped}, indent=1)
    sys.stdout.write(result + "\n")
    if args.json:
        args.json.write_text(result + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
