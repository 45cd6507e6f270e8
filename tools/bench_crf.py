"""Time the dense CRF against pydensecrf2: 500x375, 10 iterations, one thread; and two processes against one.

    python tools/bench_crf.py [--quick] [--json FILE]

The peer is `pip install pydensecrf2` (built from its source, needs g++; any folder on PYTHONPATH will do). Both sides
start from the photo and float32 scores and end with float32 marginals. The last case refines eight photos over two
processes (ours) and over one (peer).
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from typing import Any

import cv2
import numpy as np
from _bench import Call, Case, main
from _bench_images import SIZE, blurry_scores, photo
from numpy.typing import NDArray

from wsol.refine import create
from wsol.refine.densecrf import PRESETS

TARGETS = {2: 2.6, 3: 1.9, 21: 1.15}
QUICK = (("clipes", 2), ("irn", 3))
PHOTOS = 8
_Array = NDArray[Any]


def pydensecrf(image: _Array, scores: _Array, preset: Any) -> _Array:
    """Return the marginals of the C++ library for the same energy."""
    from pydensecrf.densecrf import DenseCRF2D

    setting = PRESETS[preset]
    crf = DenseCRF2D(image.shape[1], image.shape[0], len(scores))
    crf.setUnaryEnergy(np.ascontiguousarray(-np.log(np.clip(scores, 1e-5, 1)).reshape(len(scores), -1)))
    crf.addPairwiseGaussian(sxy=setting.sxy_gaussian, compat=setting.compat_gaussian)
    crf.addPairwiseBilateral(sxy=setting.sxy_bilateral, srgb=setting.srgb, rgbim=image, compat=setting.compat_bilateral)
    return np.array(crf.inference(setting.iterations)).reshape(scores.shape)


def against_peer(preset: str, channels: int) -> Callable[[ExitStack], tuple[Call, Call]]:
    """Return the builder of one comparison with the library."""

    def build(_: ExitStack) -> tuple[Call, Call]:
        image, scores, crf = photo(), blurry_scores(channels), create("densecrf", preset=preset)
        return lambda: crf(image, scores), lambda: pydensecrf(image, scores, preset)

    return build


def refine_one(seed: int) -> _Array:
    """Refine one photo with blurry scores of its own."""
    return create("densecrf", preset="irn")(photo(), blurry_scores(2, seed=seed))


def two_processes(stack: ExitStack) -> tuple[Call, Call]:
    """Build both pools and let every process compile and load before the clock runs."""
    context = multiprocessing.get_context("spawn")
    one, two = (stack.enter_context(ProcessPoolExecutor(count, mp_context=context)) for count in (1, 2))
    for pool in (one, two):
        list(pool.map(refine_one, range(PHOTOS)))
    return partial(_over, two), partial(_over, one)


def _over(pool: ProcessPoolExecutor) -> list[_Array]:
    return list(pool.map(refine_one, range(PHOTOS)))


def setup(threads: int) -> None:
    """Hold every library to so many threads, here and in child processes."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    os.environ.update(dict.fromkeys(names, str(threads)))
    cv2.setNumThreads(threads)


CASES = [
    Case(
        f"densecrf {preset} C={channels} {SIZE[1]}x{SIZE[0]}",
        against_peer(preset, channels),
        part="pydensecrf2",
        rounds=15 if channels < 10 else 9,
        tolerance=1e-4,
        quick=(preset, channels) in QUICK,
        target=TARGETS.get(channels),
    )
    for channels in (2, 3, 5, 21)
    for preset in ("clipes", "irn")
]
CASES.append(
    Case(
        f"densecrf irn C=2 {PHOTOS} photos: two processes against one",
        two_processes,
        part="processes",
        rounds=7,
        tolerance=0.0,
        memory=False,
        target=1.8,
    )
)

if __name__ == "__main__":
    if not find_spec("pydensecrf"):
        sys.stderr.write("pydensecrf is not there (pip install pydensecrf2): only the processes are compared\n")
        CASES = [case for case in CASES if case.part != "pydensecrf2"]
    raise SystemExit(main(__doc__ or "", CASES, threads=1, setup=setup))
