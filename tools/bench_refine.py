"""Time PAMR against its usual implementation, which holds all 48 neighbours of every channel at once.

    python tools/bench_refine.py [--quick] [--json FILE]

The peer is written below; one thread. The dense CRF has a benchmark of its own, tools/bench_crf.py.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import cv2
import torch
from _bench import Call, Case, main
from _bench_images import SIZE, blurry_scores, photo
from numpy.typing import NDArray
from torch.nn import functional

from wsol.refine import create


@torch.no_grad()
def usual_pamr(image: NDArray[Any], scores: NDArray[Any]) -> NDArray[Any]:
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


def build(_: ExitStack) -> tuple[Call, Call]:
    """Make both sides."""
    image, scores, refiner = photo(), blurry_scores(2), create("pamr")
    return lambda: refiner(image, scores), lambda: usual_pamr(image, scores)


def setup(threads: int) -> None:
    """Hold every library to so many threads."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


CASES = [Case(f"pamr C=2 {SIZE[1]}x{SIZE[0]}", build, rounds=5, tolerance=1e-5, quick=True)]

if __name__ == "__main__":
    raise SystemExit(main(__doc__ or "", CASES, threads=1, setup=setup))
