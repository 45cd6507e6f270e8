"""COCO run-length encoding through pycocotools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from wsol.schema import MOST_PIXELS


def encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the compressed COCO RLE of a mask.

    Args:
        mask: bool (H, W).

    Returns:
        {"size": [H, W], "counts": str}, ready for JSON.
    """
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode(rle: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return the bool (H, W) mask of a COCO RLE, compressed or as a list of lengths.

    Raises:
        ValueError: When the runs do not fill exactly H x W pixels: pycocotools would write where they lead.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
        runs = [int(run) for run in counts] if isinstance(counts, list) else _run_lengths(counts)
    except OverflowError as error:
        raise ValueError("a length without end") from error
    if (
        min(height, width) < 1
        or height * width > MOST_PIXELS
        or min(runs, default=0) < 0
        or sum(runs) != height * width
    ):
        raise ValueError(f"{sum(runs)} pixels in the runs of a mask of {height}x{width}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order="F")


def _run_lengths(counts: str | bytes) -> list[int]:
    """Return the lengths of a compressed RLE: 5 bits a character, the sixth says that more follow (maskApi.c)."""
    runs: list[int] = []
    value = shift = 0
    for code in counts.encode("ascii") if isinstance(counts, str) else counts:
        bits = code - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("not the characters of a run-length encoding")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("the run lengths are cut off")
    return runs
