"""The boxes of all contours of a grey-level map at every threshold at once, without thresholding or tracing.

The WSOL benchmark (Choe et al., CVPR 2020, https://github.com/clovaai/wsolevaluation) thresholds a map of 256 levels
up to a thousand times and traces contours each time. At most 255 of the binary images differ, and their contours are
the components of one tree: the outer border of each 8-connected component above the threshold, and the border of each
hole, a 4-connected component at or below it that the image's surroundings cannot reach. The functions here give the
boxes that `cv2.findContours(RETR_TREE, CHAIN_APPROX_SIMPLE)` and `cv2.boundingRect` give at each threshold, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsol.errors import EvalError
from wsol.ops import component_tree as tree
from wsol.ops.tree_tables import BACKGROUND, FOREGROUND

_Levels = NDArray[np.uint8]
_GROW = np.array([-3, -3, -1, -1], dtype=np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class ContourBoxes:
    """The boxes of all contours at all thresholds.

    Attributes:
        xyxy: int32 (n, 4), half-open in pixels; `x, y, x + w, y + h` of `cv2.boundingRect`.
        spans: int32 (n, 2), the first and the last threshold at which a contour has this box.
    """

    xyxy: NDArray[np.int32]
    spans: NDArray[np.int32]

    def at(self, threshold: int) -> NDArray[np.int32]:
        """Return the boxes of `levels > threshold`, int32 (m, 4), in no particular order."""
        return self.xyxy[(self.spans[:, 0] <= threshold) & (threshold <= self.spans[:, 1])]

    def count(self) -> NDArray[np.int64]:
        """Return the number of contours at thresholds 0 to 255, int64 (256,)."""
        steps = np.bincount(self.spans[:, 0], minlength=257) - np.bincount(self.spans[:, 1] + 1, minlength=257)
        return np.cumsum(steps)[:256]


def contour_boxes(levels: _Levels) -> ContourBoxes:
    """Return the boxes of all contours at every threshold: outer borders of components, and borders of holes.

    Args:
        levels: uint8 (H, W); at threshold t a pixel is foreground when its level is greater than t.

    Raises:
        EvalError: When it is no such map, or a side is longer than 32764.
    """
    levels = _check(levels)
    plane = tree.foreground(levels)
    earlier = tree.earlier_neighbours(plane)
    basins = tree.label_basins(plane, earlier, FOREGROUND.step, FOREGROUND.event)
    outer, outer_spans, _ = tree.follow_boxes(plane, earlier, basins, FOREGROUND.joins, False)
    holes, hole_spans, _ = _holes(levels)[1]
    # The planes are one and two pixels wider on each side, and the contour of a hole runs one pixel outside of it.
    boxes = np.concatenate([outer - 1, holes + _GROW])
    return ContourBoxes(boxes, np.concatenate([outer_spans, 254 - hole_spans[:, ::-1]]))


def largest_contour_boxes(levels: _Levels) -> NDArray[np.int32]:
    """Return the box of the contour with the largest `cv2.contourArea` at every threshold.

    The contour of a hole encloses less than that of its component, and nested components enclose less still, so only
    the components of the map without its holes compete.

    Args:
        levels: uint8 (H, W); at threshold t a pixel is foreground when its level is greater than t.

    Returns:
        int32 (256, 4) half-open xyxy by threshold; zeros where there is no foreground. Of equal areas the contour
        that OpenCV lists first wins: the one whose first pixel in raster order is the last.

    Raises:
        EvalError: See `contour_boxes`.
    """
    plane = tree.foreground(fill_holes(levels))
    earlier = tree.earlier_neighbours(plane)
    basins = tree.label_basins(plane, earlier, FOREGROUND.step, FOREGROUND.event)
    return np.asarray(tree.follow_largest(plane, earlier, basins))


def fill_holes(levels: _Levels) -> _Levels:
    """Raise every pixel to the lowest level at which the image's surroundings cannot reach it.

    Args:
        levels: uint8 (H, W).

    Returns:
        uint8 (H, W): at every threshold the components of the result are those of `levels`, nested ones left out,
        without their holes (4-connected background).

    Raises:
        EvalError: See `contour_boxes`.
    """
    levels = _check(levels)
    basins, (_, _, unions) = _holes(levels)
    return np.asarray(tree.fill_basins(levels, basins, unions))


def _holes(levels: _Levels) -> tuple[tree.Basins, Any]:
    """Return the basins of the background, and the boxes, spans and unions of its holes."""
    plane = tree.background(levels)
    earlier = tree.earlier_neighbours(plane)
    basins = tree.label_basins(plane, earlier, BACKGROUND.step, BACKGROUND.event)
    return basins, tree.follow_boxes(plane, earlier, basins, BACKGROUND.joins, True)


def _check(levels: _Levels) -> _Levels:
    if levels.ndim != 2 or levels.dtype != np.uint8 or not levels.size or max(levels.shape) > tree.MAX_SIDE:
        limit = f"uint8 (H, W) with sides from 1 to {tree.MAX_SIDE}"
        raise EvalError(f"expected levels as {limit}, got {levels.dtype} {levels.shape}")
    return np.ascontiguousarray(levels)
