"""COCO run-length encoding through pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask


def encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the compressed COCO RLE of a mask.

    Args:
        mask: bool (H, W).

    Returns:
        {"size": [H, W], "counts": str}, ready for JSON.
    """
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode(rle: dict[str, Any]) -> NDArray[np.bool_]:
    """Return the bool (H, W) mask of a COCO RLE."""
    return np.asarray(coco_mask.decode(rle), dtype=bool)
