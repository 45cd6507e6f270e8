"""Pictures of what the methods found: score maps, masks and boxes drawn over the photo.

Every function returns a new RGB uint8 array and leaves its input as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from wsol.errors import DataError
from wsol.ops.palette import voc_palette
from wsol.report.drawing import DARK, WHITE, Area, Chip, Colour, Image, blend, check_image, line_width, outline, overlap
from wsol.schema import IGNORE, Boxes, FloatArray

Corner: TypeAlias = Literal["top-left", "top-right", "bottom-left", "bottom-right"]

PREDICTED: Colour = (255, 140, 0)
TRUTH: Colour = (70, 200, 255)

_COLORMAPS = {"jet": cv2.COLORMAP_JET, "turbo": cv2.COLORMAP_TURBO, "viridis": cv2.COLORMAP_VIRIDIS}


def heatmap(
    image: Image,
    score: FloatArray,
    *,
    opacity: float = 0.5,
    colormap: Literal["jet", "turbo", "viridis"] = "jet",
) -> Image:
    """Blend a coloured score map over the image.

    Args:
        image: RGB uint8 (H, W, 3).
        score: float (H, W) in [0, 1].
        opacity: Weight of the colours in [0, 1]; the image keeps the rest.
        colormap: Blue to red ("jet", "turbo") or dark to yellow ("viridis", safe for the colour-blind).

    Returns:
        RGB uint8 (H, W, 3).

    Raises:
        DataError: When the score map has another size or leaves [0, 1], or the colour map is unknown.
    """
    check_image(image)
    if score.shape != image.shape[:2]:
        raise DataError(f"heatmap: expected a score map of shape {image.shape[:2]}, got {score.shape}")
    if not (float(score.min()) >= 0.0 and float(score.max()) <= 1.0):
        raise DataError(f"heatmap: expected scores in [0, 1], got [{score.min():.4g}, {score.max():.4g}]")
    if colormap not in _COLORMAPS:
        raise DataError(f"heatmap: unknown colormap '{colormap}'", hint="choose from " + ", ".join(_COLORMAPS))
    levels = np.rint(score.astype(np.float32) * 255).astype(np.uint8)
    colours = cv2.applyColorMap(levels, _COLORMAPS[colormap])[..., ::-1]
    return blend(image, colours.astype(np.float32), opacity)


def mask_overlay(image: Image, labels: Image, *, opacity: float = 0.5) -> Image:
    """Colour the regions of a mask over the image, with a line along their borders.

    Args:
        image: RGB uint8 (H, W, 3).
        labels: uint8 (H, W): 0 background (left as it is), class id + 1 in its VOC colour, 255 ignored (hatched).
        opacity: Weight of the colours in [0, 1].

    Returns:
        RGB uint8 (H, W, 3).

    Raises:
        DataError: When the mask has another size or is not uint8.
    """
    check_image(image)
    if labels.shape != image.shape[:2] or labels.dtype != np.uint8:
        raise DataError(f"mask_overlay: expected a uint8 mask {image.shape[:2]}, got {labels.dtype} {labels.shape}")
    palette = voc_palette()
    known = (labels > 0) & (labels != IGNORE)
    canvas = np.where(known[..., None], blend(image, palette[labels].astype(np.float32), opacity), image)

    line = line_width(image)
    rows, columns = np.ogrid[: labels.shape[0], : labels.shape[1]]
    stripe = ((rows + columns) // (2 * line) % 2 == 0)[..., None]
    # Two tones, so that the hatching shows on bright and on dark photos.
    hatched = blend(image, np.where(stripe, np.float32(255), np.float32(48)), 0.55)
    canvas = np.where((labels == IGNORE)[..., None], hatched, canvas)

    kernel = np.ones((2 * line + 1, 2 * line + 1), dtype=np.uint8)
    border = known & (cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, kernel) > 0)
    bright = (palette.astype(np.uint16) + 255) // 2  # the line lies inside its region, in a lighter shade of it
    return np.where(border[..., None], bright[labels], canvas).astype(np.uint8)


def draw_boxes(
    image: Image,
    boxes: Boxes | FloatArray,
    *,
    names: Sequence[str] | None = None,
    colours: Sequence[Colour] | None = None,
    truth: Boxes | FloatArray | None = None,
) -> Image:
    """Draw predicted boxes (solid, orange) and true boxes (dashed, light blue) over the image.

    Parts outside the image are cut off; boxes wholly outside are not drawn.

    Args:
        image: RGB uint8 (H, W, 3).
        boxes: Predicted boxes, or an array (N, 4) of xyxy half-open pixels.
        names: With `Boxes`: class names by class id, shown with the score. With an array: one text a box.
        colours: One RGB colour a predicted box instead of orange.
        truth: True boxes, drawn below the predicted ones and without text.

    Returns:
        RGB uint8 (H, W, 3).

    Raises:
        DataError: When boxes are not finite, not (N, 4), or names and colours do not fit them.
    """
    check_image(image)
    corners = _corners(boxes)
    texts = _box_texts(boxes, names)
    if colours is not None and len(colours) != len(corners):
        raise DataError(f"draw_boxes: expected {len(corners)} colours, got {len(colours)}")
    canvas = image.copy()
    for _, area in _visible(_corners(truth) if truth is not None else corners[:0], image):
        outline(canvas, area, TRUTH, dashed=True)
    taken: list[Area] = []
    shown = list(_visible(corners, image))
    for index, area in shown:
        outline(canvas, area, colours[index] if colours is not None else PREDICTED, dashed=False)
    for index, (left, top, _, bottom) in shown:  # after all lines, so that no line crosses a text
        chip = Chip.fit(texts[index], image)
        if chip is None:
            continue
        line = line_width(image)
        places = (top - chip.height + line // 2, top - line // 2, bottom, bottom - chip.height)
        areas = [chip.area_at(left - line // 2, y, image) for y in places if 0 <= y <= image.shape[0] - chip.height]
        areas = areas or [chip.area_at(left - line // 2, top, image)]
        area = next((free for free in areas if not any(overlap(free, other) for other in taken)), areas[0])
        chip.draw(canvas, area, colours[index] if colours is not None else PREDICTED)
        taken.append(area)
    return canvas


def label_text(image: Image, text: str, *, corner: Corner = "top-left", colour: Colour = DARK) -> Image:
    """Write a text on a filled strip into a corner of the image.

    Args:
        image: RGB uint8 (H, W, 3).
        text: One line; shortened where the image is too narrow, left out where it is too small to read.
        corner: Which corner.
        colour: RGB of the strip; the letters are black or white, whichever reads better.

    Returns:
        RGB uint8 (H, W, 3).
    """
    check_image(image)
    canvas = image.copy()
    chip = Chip.fit(text, image)
    if chip is not None:
        left = 0 if corner.endswith("left") else image.shape[1] - chip.width
        top = 0 if corner.startswith("top") else image.shape[0] - chip.height
        chip.draw(canvas, chip.area_at(left, top, image), colour)
    return canvas


def shrink(image: Image, *, width: int, height: int | None = None) -> Image:
    """Reduce an image so that it fits, keeping its aspect; smaller images come back as a copy.

    Args:
        image: RGB uint8 (H, W, 3).
        width: Largest width in pixels.
        height: Largest height in pixels; without it only the width counts.

    Returns:
        RGB uint8 (h, w, 3) with w <= width; averaged over areas (cv2.INTER_AREA).
    """
    check_image(image)
    rows, columns = image.shape[:2]
    factor = min(1.0, width / columns, (height / rows) if height is not None else 1.0)
    if factor == 1.0:
        return image.copy()
    size = (max(1, round(columns * factor)), max(1, round(rows * factor)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def contact_sheet(
    images: Sequence[Image],
    *,
    columns: int = 4,
    captions: Sequence[str] | None = None,
    width: int = 1200,
    gap: int = 8,
) -> Image:
    """Lay images out in a grid on white.

    Args:
        images: RGB uint8 (H, W, 3), of any sizes; each is scaled to fit a square cell, keeping its aspect.
        columns: Images a row.
        captions: One line a picture, below it; shortened to the cell.
        width: Width of the sheet in pixels.
        gap: White pixels around and between cells.

    Returns:
        RGB uint8 (h, width, 3); every row is as high as its highest picture (and the caption).

    Raises:
        DataError: When there is no image, the captions do not fit, or the cells would be empty.
    """
    if not images:
        raise DataError("contact_sheet: no images")
    if captions is not None and len(captions) != len(images):
        raise DataError(f"contact_sheet: expected {len(images)} captions, got {len(captions)}")
    cell = (width - gap * (columns + 1)) // columns if columns > 0 else 0
    if cell < 1:
        raise DataError(f"contact_sheet: {columns} columns do not fit into {width} pixels", hint="give a larger width")
    strip = 24 if captions is not None else 0
    rows = []
    for start in range(0, len(images), columns):
        tiles = [_fit(image, cell) for image in images[start : start + columns]]
        height = max(len(tile) for tile in tiles)
        row = np.full((height + strip + gap, width, 3), 255, dtype=np.uint8)
        for column, tile in enumerate(tiles):
            left = gap + column * (cell + gap)
            inset = left + (cell - tile.shape[1]) // 2
            row[: len(tile), inset : inset + tile.shape[1]] = tile
            if captions is not None:
                chip = Chip.of_height(captions[start + column], 10, limit=cell)
                area = (left, height, left + cell, height + strip)
                if chip is not None:
                    chip.draw(row, area, WHITE)
        rows.append(row)
    return np.concatenate([np.full((gap, width, 3), 255, dtype=np.uint8), *rows])


def _corners(boxes: Boxes | FloatArray) -> NDArray[np.float32]:
    corners = np.asarray(boxes.xyxy if isinstance(boxes, Boxes) else boxes, dtype=np.float32)
    corners = corners.reshape(0, 4) if corners.size == 0 else corners
    if corners.ndim != 2 or corners.shape[1] != 4 or not np.isfinite(corners).all():
        raise DataError(f"draw_boxes: expected finite boxes (N, 4), got shape {corners.shape}")
    return corners


def _box_texts(boxes: Boxes | FloatArray, names: Sequence[str] | None) -> list[str]:
    if not isinstance(boxes, Boxes):
        texts = [""] * len(boxes) if names is None else list(names)
        if len(texts) != len(boxes):
            raise DataError(f"draw_boxes: expected {len(boxes)} names, one a box, got {len(texts)}")
        return texts
    if names is None:
        return [f"{score:.2f}" for score in boxes.scores]
    if len(boxes.class_ids) and not 0 <= int(boxes.class_ids.max()) < len(names):
        raise DataError(f"draw_boxes: class id {int(boxes.class_ids.max())} has no name among {len(names)}")
    return [f"{names[index]} {score:.2f}" for index, score in zip(boxes.class_ids, boxes.scores, strict=True)]


def _visible(corners: NDArray[np.float32], image: Image) -> Iterator[tuple[int, Area]]:
    """Yield (index, first and last pixel) of the boxes that lie at least partly in the image."""
    rows, columns = image.shape[:2]
    for index, corner in enumerate(np.clip(corners, 0, (columns, rows, columns, rows))):
        if corner[2] > corner[0] and corner[3] > corner[1]:
            left, top, right, bottom = np.rint(corner).astype(int).tolist()
            left, top = min(left, columns - 1), min(top, rows - 1)
            yield index, (left, top, max(left, right - 1), max(top, bottom - 1))


def _fit(image: Image, cell: int) -> Image:
    check_image(image)
    factor = cell / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=method), dtype=np.uint8)
