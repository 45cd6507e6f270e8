"""The boxes around what is strong in a map, as a mask: where CLIP-ES lets a class spread from."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def box_masks(maps: NDArray[np.float32], *, threshold: float = 0.4, reference_boxes: bool = False) -> NDArray[np.bool_]:
    """Mark the bounding boxes of the regions above a share of each map's maximum.

    A map is cut to 8 bits, regions are the 8-connected pixels above int(threshold * maximum), and everything inside
    the bounding box of a region counts.

    Args:
        maps: float32 (K, h, w) in [0, 1].
        threshold: Share of the maximum in [0, 1]; CLIP-ES: 0.4 for VOC, 0.7 for COCO.
        reference_boxes: As in the code of CLIP-ES, whose boxes never hold the last row and the last column of the map.

    Returns:
        bool (K, h, w); empty for a map without positive values.
    """
    masks = np.zeros(maps.shape, np.bool_)
    height, width = maps.shape[1:]
    for values, mask in zip(maps, masks, strict=True):
        levels = (values * np.float32(255)).astype(np.uint8)
        strong = (levels > int(threshold * int(levels.max()))).astype(np.uint8)
        boxes = cv2.connectedComponentsWithStats(strong, connectivity=8)[2][1:, :4]  # the first is the background
        for x, y, w, h in boxes.tolist():
            right, bottom = x + w, y + h
            if reference_boxes:
                right, bottom = min(right, width - 1), min(bottom, height - 1)
            mask[y:bottom, x:right] = True
    return masks
