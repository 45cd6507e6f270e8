"""One image: from its scores to the best IoU with ground truth at every threshold, view by view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsol.errors import EvalError
from wsol.eval.protocols import View
from wsol.eval.scoremap import ScoreMap, check_scoremap, quantise, scale_boxes, threshold_levels, to_scoremap
from wsol.eval.sources import Scores
from wsol.ops.box_iou import best_iou_of_all, best_iou_of_largest, inclusive_iou
from wsol.ops.boxes import largest_component_box
from wsol.ops.components import contour_boxes, largest_contour_boxes

IouCurve = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class LevelCurve:
    """The best IoU of one image at every integer threshold.

    Attributes:
        iou: float64 (256,); entry t belongs to `level > t`.
        maximum: Highest level of the map; a threshold is a fraction of it.
    """

    iou: IouCurve
    maximum: int

    def at(self, thresholds: NDArray[np.float64]) -> IouCurve:
        """Return the IoU at thresholds in [0, 1], float64 (T,)."""
        return self.iou[threshold_levels(thresholds, self.maximum)]


class ImageMaps:
    """The score maps of one image and class, made once for all views that need the same.

    Args:
        scores: Stored scores.
        label: Class.
        size: Side of the square that is evaluated; a ready map keeps its own size.
        where: Image id, for messages.

    Raises:
        EvalError: When the class has no map.
    """

    def __init__(self, scores: Scores, label: int, *, size: int, where: str) -> None:
        if scores.ready is None and label not in scores.by_class:
            raise EvalError(f"no map of class {label}", where=where, hint="run wsol cam with --classes labels")
        self._scores, self._label, self._size, self._where = scores, label, size, where
        self._maps: dict[tuple[str, str], ScoreMap] = {}
        self._levels: dict[tuple[str, str], NDArray[np.uint8]] = {}

    def scoremap(self, view: View) -> ScoreMap:
        """Return the map as a view wants it, float64 (H, W) in [0, 1]."""
        if self._scores.ready is not None:
            return self._scores.ready
        key = (view.interpolation, view.order)
        if key not in self._maps:
            values = self._scores.by_class[self._label]
            self._maps[key] = check_scoremap(to_scoremap(values, self._size, view=view), where=self._where)
        return self._maps[key]

    def levels(self, view: View) -> NDArray[np.uint8]:
        """Return the map in 256 levels, uint8 (H, W)."""
        key = (view.interpolation, view.order)
        if key not in self._levels:
            self._levels[key] = quantise(self.scoremap(view))
        return self._levels[key]

    def truth(self, boxes: NDArray[np.float32], image_size: tuple[int, int], view: View) -> NDArray[np.float64]:
        """Return ground-truth boxes in the pixels of the map, see `scale_boxes`."""
        size = self.scoremap(view).shape
        return scale_boxes(boxes, image_size=image_size, size=(size[0], size[1]), view=view, where=self._where)


def level_curve(levels: NDArray[np.uint8], truth: NDArray[np.float64], *, view: View = View()) -> LevelCurve:  # noqa: B008
    """Return the best IoU of predicted and true boxes at every integer threshold.

    Args:
        levels: uint8 (H, W), a quantised score map.
        truth: float64 (G, 4) xyxy in pixels of the map; ends are the last pixel inside.
        view: "largest" or "all" contours, clipped or not, and the box for an empty map.
    """
    height, width = levels.shape
    truth, empty = np.ascontiguousarray(truth, dtype=np.float64), empty_box(view, height, width)
    if view.contours == "all":
        boxes = contour_boxes(levels)
        iou = best_iou_of_all(boxes.xyxy, boxes.spans, truth, empty, height, width, view.clip)
    else:
        iou = best_iou_of_largest(largest_contour_boxes(levels), truth, empty, height, width, view.clip)
    return LevelCurve(iou, int(levels.max()))


def pixel_ious(
    scoremap: ScoreMap, truth: NDArray[np.float64], *, thresholds: Sequence[float], view: View
) -> NDArray[np.float64]:
    """Return the IoU of the box around the largest component of the float map, by number of pixels (BAS, SAT).

    Args:
        scoremap: float64 (H, W) in [0, 1].
        truth: float64 (G, 4).
        thresholds: T thresholds.
        view: Gives the box for an empty map.

    Returns:
        float64 (T,).
    """
    ious = [
        inclusive_iou(*box, np.ascontiguousarray(truth))
        for box in (pixel_box(scoremap, threshold, view=view) for threshold in thresholds)
    ]
    return np.array(ious, dtype=np.float64)


def pixel_box(scoremap: ScoreMap, threshold: float, *, view: View) -> tuple[float, float, float, float]:
    """Return the half-open box of the 8-connected component with the most pixels above a threshold."""
    found = largest_component_box(scoremap > threshold)
    x0, y0, x1, y1 = (found[0] if len(found) else empty_box(view, *scoremap.shape)).tolist()
    return x0, y0, x1, y1


def predicted_boxes(maps: ImageMaps, threshold: float, *, view: View) -> NDArray[np.float64]:
    """Return the boxes that a view predicts at one threshold.

    Args:
        maps: Maps of the image.
        threshold: Fraction of the map's maximum.
        view: Any view.

    Returns:
        float64 (N, 4) as they enter IoU: ends count as the last pixel inside.
    """
    if view.contours == "pixels":
        return np.array([pixel_box(maps.scoremap(view), threshold, view=view)])
    levels = maps.levels(view)
    height, width = levels.shape
    at = int(threshold * int(levels.max()))
    found = contour_boxes(levels).at(at) if view.contours == "all" else largest_contour_boxes(levels)[at : at + 1]
    boxes = found[found[:, 2] > 0].astype(np.float64)
    if not len(boxes):
        return empty_box(view, height, width)[None]
    limit = [np.inf, np.inf, width - 1, height - 1] if view.clip else np.inf
    return np.minimum(boxes, limit)


def empty_box(view: View, height: int, width: int) -> NDArray[np.float64]:
    """Return the box that a view predicts where nothing is above the threshold, float64 (4,)."""
    box = (0, 0, width, height) if view.empty == "image" else view.empty
    return np.array(box, dtype=np.float64)
