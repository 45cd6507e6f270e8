"""Polygons around the components of a mask, in the two ways in which tools read them."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_Polygons = list[NDArray[np.int32]]


def edge_polygons(mask: NDArray[np.bool_], *, simplify: float = 0.0) -> _Polygons:
    """Trace the 8-connected components along the edges of their pixels; holes are filled.

    Pixel (x, y) spans [x, x + 1] times [y, y + 1], so a polygon encloses exactly the area of its component and holes.

    Args:
        mask: bool (H, W).
        simplify: Largest distance in pixels that the outline may stray (Douglas-Peucker); 0 keeps every corner.

    Returns:
        int32 (N, 2) x, y for each component that lies in no hole of another; N is at least 4 without `simplify`.
    """
    # On a mask of twice the size, border pixels 2x and 2x - 1 lie on either side of the edge x; where the 8-connected
    # border cuts a concave corner, both ends of the cut fall onto that corner.
    twice = np.repeat(np.repeat(mask.astype(np.uint8), 2, axis=0), 2, axis=1)
    found = cv2.findContours(twice, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    return [_simplify(_without_repeats((_points(contour) + 1) // 2), simplify) for contour in found]


def border_polygons(mask: NDArray[np.bool_], *, simplify: float = 0.0) -> _Polygons:
    """Trace the 8-connected components through their border pixels, as `cv2.findContours` does; holes are filled.

    Readers that draw a polygon together with its outline (`cv2.fillPoly`, Pillow) give the component back.

    Args:
        mask: bool (H, W).
        simplify: See `edge_polygons`.

    Returns:
        int32 (N, 2) x, y for each component that lies in no hole of another; points repeat where fewer than three
        pixels would do, because readers want at least three.
    """
    found = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    polygons = (_simplify(_points(contour), simplify) for contour in found)
    return [np.pad(polygon, ((0, max(0, 3 - len(polygon))), (0, 0)), mode="edge") for polygon in polygons]


def filled_area(mask: NDArray[np.bool_]) -> int:
    """Return the number of pixels inside the outer outlines of a mask: its own and those of its holes."""
    filled = np.zeros(mask.shape, np.uint8)
    cv2.fillPoly(filled, border_polygons(mask), (1,))
    return int(filled.sum())


def _points(contour: Any) -> NDArray[np.int32]:
    return np.asarray(contour[:, 0], dtype=np.int32)


def _without_repeats(points: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.compress((points != np.roll(points, 1, axis=0)).any(axis=1), points, axis=0)


def _simplify(points: NDArray[np.int32], tolerance: float) -> NDArray[np.int32]:
    if tolerance <= 0:
        return points
    fewer = _points(cv2.approxPolyDP(points[:, None], tolerance, True))
    return fewer if len(fewer) >= 3 else points
