"""Benchmark of the localization kernels against the rule they replace: threshold, trace contours, best IoU.

    python tools/bench_localization.py [--quick] [--json FILE] [--seed N]

The peer is the rule of the WSOL benchmark as one would write it with OpenCV: every threshold is a binary image, its
contours are traced, their boxes are compared with ground truth. Peer and ours run alternately on the same maps in
one thread; both start from the float64 score map and end with the best IoU at every threshold. `equal` says that all
these IoUs are the same to the last bit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from _bench import machine
from numpy.typing import NDArray

from wsol.eval.boxes import level_curve
from wsol.eval.protocols import ALL, LARGEST, View
from wsol.eval.scoremap import quantise

Map = NDArray[np.float64]
SIZES = {"224x224": (224, 224), "500x375": (375, 500)}
INTERVALS = (0.001, 0.01)
VIEWS = {"v1": LARGEST, "v2": ALL}


def smooth(side: int) -> Callable[[np.random.Generator, tuple[int, int]], Map]:
    """Return a maker of maps as CAMs are: random scores on a coarse grid, upsampled."""

    def make(rng: np.random.Generator, size: tuple[int, int]) -> Map:
        return _normalise(cv2.resize(rng.random((side, side)), size[::-1], interpolation=cv2.INTER_CUBIC))

    return make


def rough(rng: np.random.Generator, size: tuple[int, int]) -> Map:
    """Make a map with texture at full resolution, as gradient methods and refiners give."""
    texture = cv2.GaussianBlur(rng.random(size), (0, 0), 2.0)
    return _normalise(_normalise(texture) + smooth(14)(rng, size))


MAKERS = {"smooth7": smooth(7), "smooth14": smooth(14), "smooth28": smooth(28), "rough": rough}


def peer(scoremap: Map, truth: NDArray[np.float64], thresholds: NDArray[np.float64], view: View) -> Map:
    """Return the best IoU at every threshold by thresholding and tracing; IoU is computed once for all boxes."""
    levels = (scoremap * 255).astype(np.uint8)
    height, width = levels.shape
    top = int(levels.max())
    boxes: list[tuple[int, int, int, int]] = []
    starts = []
    for threshold in thresholds:
        binary = cv2.threshold(levels, int(threshold * top), 255, cv2.THRESH_BINARY)[1]
        contours = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
        if view is LARGEST and contours:
            contours = [max(contours, key=cv2.contourArea)]
        starts.append(len(boxes))
        boxes += [cv2.boundingRect(contour) for contour in contours] or [(0, 0, 0, 0)]
    corners = np.array(boxes, dtype=np.float64)
    corners[:, 2:] = np.minimum(corners[:, :2] + corners[:, 2:], (width - 1, height - 1))
    return np.maximum.reduceat(_inclusive_iou(corners, truth).max(axis=1), starts)


def ours(scoremap: Map, truth: NDArray[np.float64], thresholds: NDArray[np.float64], view: View) -> Map:
    """Return the same from the component tree."""
    return level_curve(quantise(scoremap), truth, view=view).at(thresholds)


def _inclusive_iou(boxes: NDArray[np.float64], truth: NDArray[np.float64]) -> NDArray[np.float64]:
    a, b = boxes[:, None], truth[None]
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1, 0, None)
    inter = sides.prod(-1)
    areas = [(box[..., 2:] - box[..., :2] + 1).prod(-1) for box in (a, b)]
    return inter / (areas[0] + areas[1] - inter)


def _normalise(values: Any) -> Map:
    values = np.asarray(values, dtype=np.float64) - values.min()
    return values / values.max()


def _truth(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float64]:
    corners = np.sort(rng.random((int(rng.integers(1, 4)), 2, 2)), axis=1) * (np.array(size[::-1]) - 1)
    return np.trunc(corners.reshape(-1, 4))


def _timed(function: Callable[..., Map], *args: Any) -> tuple[float, Map]:
    start = time.process_time()
    result = function(*args)
    return 1000 * (time.process_time() - start), result


def _peak_mb(function: Callable[..., Map], *args: Any) -> float:
    tracemalloc.start()
    function(*args)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return round(peak / 2**20, 2)


def run_case(size: str, interval: float, maker: str, view: str, *, maps: int, seed: int) -> dict[str, Any]:
    """Time one case.

    Args:
        size: Key of SIZES.
        interval: Distance of the thresholds.
        maker: Key of MAKERS.
        view: Key of VIEWS.
        maps: How many maps.
        seed: Seed of the maps.
    """
    thresholds = np.arange(0, 1, interval)
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    equal, peaks = True, {"ours": 0.0, "peer": 0.0}
    for number in range(maps + 1):
        rng = np.random.default_rng([seed, number])
        args = (MAKERS[maker](rng, SIZES[size]), _truth(rng, SIZES[size]), thresholds, VIEWS[view])
        peer_ms, expected = _timed(peer, *args)
        own_ms, got = _timed(ours, *args)
        equal = equal and bool((expected == got).all())
        if number:  # the first one warms up
            times["peer"].append(peer_ms)
            times["ours"].append(own_ms)
        else:
            peaks = {"ours": _peak_mb(ours, *args), "peer": _peak_mb(peer, *args)}
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "case": f"{size} interval={interval:g} {maker} {view}",
        "ours_ms": round(medians["ours"], 4),
        "peer_ms": round(medians["peer"], 4),
        "ratio": round(medians["peer"] / medians["ours"], 2),
        "ours_peak_mb": peaks["ours"],
        "peer_peak_mb": peaks["peer"],
        "equal": equal,
    }


def main() -> int:
    """Run all cases, print a line each, and write the JSON; exit status 1 when any IoU differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few maps a case: under a minute")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    cases = []
    for size in SIZES:
        for interval in INTERVALS:
            for maker in MAKERS:
                for view in VIEWS:
                    maps = (5 if interval > 0.001 else 3) if args.quick else 24
                    case = run_case(size, interval, maker, view, maps=maps, seed=args.seed)
                    cases.append(case)
                    sys.stdout.write(
                        f"{case['case']:<38} ours {case['ours_ms']:8.3f} ms   peer {case['peer_ms']:8.2f} ms   "
                        f"ratio {case['ratio']:6.1f}   {'equal' if case['equal'] else 'DIFFERENT'}\n"
                    )
                    sys.stdout.flush()
    if args.json:
        args.json.write_text(
            json.dumps({"machine": machine(threads=1), "cases": cases}, indent=1) + "\n", encoding="utf-8"
        )
    return 0 if all(case["equal"] for case in cases) else 1


if __name__ == "__main__":
    raise SystemExit(main())
