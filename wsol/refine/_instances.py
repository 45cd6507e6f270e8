"""From a displacement field to instances: centroids, groups of pixels, and their masks (IRNet)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray


class Instance(NamedTuple):
    """One object.

    Attributes:
        channel: Position of its class among the maps.
        score: Highest walked score inside, in [0, 1].
        mask: bool (H, W).
    """

    channel: int
    score: float
    mask: NDArray[np.bool_]


def find_centroids(field: NDArray[np.float32], *, iterations: int = 300) -> NDArray[np.int64]:
    """Follow the displacements from every position until they end, the refinement of IRNet.

    Args:
        field: float32 (2, h, w), (dy, dx) in grid positions.
        iterations: How often the displacement at the present place, interpolated bilinearly, is added.

    Returns:
        int64 (2, h, w): row and column of the centroid of each position.
    """
    height, width = field.shape[1:]
    limits = np.array([height - 1, width - 1], np.float32)[:, None, None]
    place = np.mgrid[:height, :width].astype(np.float32)
    for _ in range(iterations):
        low = np.floor(place).astype(np.int64)
        high = np.ceil(place).astype(np.int64)
        (y, x), (top, left), (bottom, right) = place - low, low, high
        upper = field[:, top, left] * (1 - x) + field[:, top, right] * x
        lower = field[:, bottom, left] * (1 - x) + field[:, bottom, right] * x
        place = np.clip(place + upper * (1 - y) + lower * y, 0, limits)
    return np.rint(place).astype(np.int64)


def group_by_centroid(
    centroids: NDArray[np.int64], field: NDArray[np.float32], *, threshold: float = 2.5
) -> NDArray[np.int64]:
    """Give one number to the positions whose centroids lie in one region of small displacements.

    Args:
        centroids: int64 (2, h, w) from `find_centroids`.
        field: float32 (2, h, w).
        threshold: Displacements shorter than this, in grid positions, are small; regions are 4-connected.

    Returns:
        int64 (h, w) from 0 on without gaps; positions whose centroid lies in no such region share one number.
    """
    still = np.hypot(field[0], field[1]) < threshold
    regions = cv2.connectedComponents(still.astype(np.uint8), connectivity=4)[1]
    groups = np.unique(regions[centroids[0], centroids[1]], return_inverse=True)[1]
    return np.asarray(groups.reshape(still.shape), dtype=np.int64)


def split_by_group(scores: NDArray[np.float32], groups: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return scores (K, h, w) as (K * N, h, w), the N groups of a class one after the other, 0 outside of each."""
    masks = groups == np.arange(groups.max() + 1)[:, None, None]
    return np.asarray(scores[:, None] * masks, dtype=np.float32).reshape(-1, *groups.shape)


def read_instances(
    scores: NDArray[np.float32], *, channels: int, background: float, least: float = 0.01
) -> Iterator[Instance]:
    """Read objects off the walked scores of the groups: the 4-connected parts of the argmax.

    Args:
        scores: float32 (K * N, H, W) in [0, 1], the groups of a class one after the other.
        channels: K.
        background: Score of the background.
        least: Parts that cover a smaller share of the image are left out (the code of IRNet gives them score 0).

    Yields:
        Instances by class and group.
    """
    if not len(scores):
        return
    best = scores.argmax(axis=0)
    best[scores.max(axis=0) <= background] = -1
    for at in np.unique(best[best >= 0]).tolist():
        count, parts = cv2.connectedComponents((best == at).astype(np.uint8), connectivity=4)
        for part in range(1, count):
            mask = parts == part
            if mask.sum() >= least * mask.size:
                yield Instance(at // (len(scores) // channels), float(scores[at][mask].max()), mask)
