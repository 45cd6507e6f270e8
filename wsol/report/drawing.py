"""The strokes that overlays are made of: blends, outlines and strips of text.

`outline` and `Chip.draw` change the canvas they are given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from wsol.errors import DataError

Image: TypeAlias = NDArray[np.uint8]
Colour: TypeAlias = tuple[int, int, int]
Area: TypeAlias = tuple[int, int, int, int]

DARK: Colour = (16, 16, 16)
WHITE: Colour = (255, 255, 255)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True, slots=True)
class Chip:
    """A line of text on a filled strip, measured before it is placed.

    Attributes:
        text: What is shown, perhaps shortened.
        scale: Scale of the font.
        weight: Stroke width in pixels.
        width: Width of the strip in pixels.
        height: Height of the strip in pixels.
        pad: Free pixels around the letters.
    """

    text: str
    scale: float
    weight: int
    width: int
    height: int
    pad: int

    @classmethod
    def fit(cls, text: str, image: Image) -> Chip | None:
        """Measure a text in proportion to the image; None where it could not be read."""
        rows, columns = image.shape[:2]
        chip = cls.of_height(text, max(9, round(0.036 * max(rows, columns))), limit=columns)
        return chip if chip is not None and chip.height <= rows // 3 else None

    @classmethod
    def of_height(cls, text: str, capital: int, *, limit: int) -> Chip | None:
        """Measure a text whose capitals are `capital` pixels high, shortened to `limit` pixels of width."""
        # Older releases of OpenCV draw ASCII only; the same text must come out with every release.
        shown = " ".join(text.encode("ascii", "replace").decode().split())
        weight = max(1, capital // 14)
        scale = cv2.getFontScaleFromHeight(_FONT, capital, weight)
        pad = max(2, capital // 3)
        while shown.rstrip("."):
            (width, _), _ = cv2.getTextSize(shown, _FONT, scale, weight)
            if width + 2 * pad <= limit:
                return cls(shown, scale, weight, width + 2 * pad, capital + 2 * pad, pad)
            shown = shown.rstrip(".")[:-1].rstrip() + ".."
        return None

    def area_at(self, left: int, top: int, image: Image) -> Area:
        """Return the strip's area, moved inside the image."""
        left = min(max(left, 0), image.shape[1] - self.width)
        top = min(max(top, 0), image.shape[0] - self.height)
        return left, top, left + self.width, top + self.height

    def draw(self, canvas: Image, area: Area, colour: Colour) -> None:
        """Fill the area and write the text into it, black or white, whichever reads better."""
        left, top, right, bottom = area
        canvas[top:bottom, left:right] = colour
        luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
        ink = DARK if luminance > 120 else WHITE
        base = (left + self.pad, bottom - self.pad)
        cv2.putText(canvas, self.text, base, _FONT, self.scale, ink, self.weight, cv2.LINE_AA)


def check_image(image: Image) -> None:
    """Refuse what is not an RGB uint8 image (H, W, 3) with at least one pixel.

    Raises:
        DataError: With what came instead.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise DataError(f"expected an RGB uint8 image (H, W, 3), got {image.dtype} {image.shape}")


def blend(image: Image, colours: NDArray[np.float32], opacity: float) -> Image:
    """Return `(1 - opacity) * image + opacity * colours`, rounded, as uint8.

    Raises:
        DataError: When the opacity is outside [0, 1].
    """
    if not 0.0 <= opacity <= 1.0:
        raise DataError(f"expected an opacity in [0, 1], got {opacity}")
    return np.rint(image * np.float32(1 - opacity) + colours * np.float32(opacity)).astype(np.uint8)


def line_width(image: Image) -> int:
    """Return a line width in pixels that suits the size of the image."""
    return max(1, round(int(max(image.shape[:2])) / 170))


def outline(canvas: Image, area: Area, colour: Colour, *, dashed: bool) -> None:
    """Draw a box with a dark rim onto the canvas.

    Args:
        canvas: RGB uint8 (H, W, 3), changed in place.
        area: First and last pixel (left, top, right, bottom), both drawn.
        colour: RGB of the line.
        dashed: Whether to leave gaps.
    """
    left, top, right, bottom = area
    thumbnail = max(canvas.shape[:2]) <= 160  # there a rim would hide more than it shows
    line = line_width(canvas) if thumbnail else max(2, line_width(canvas))
    dash = 5 * line if dashed else max(right - left, bottom - top) + 1
    pieces: list[tuple[tuple[int, int], tuple[int, int]]] = []
    for x in range(left, right + 1, 2 * dash):
        end = min(x + dash, right)
        pieces += [((x, top), (end, top)), ((x, bottom), (end, bottom))]
    for y in range(top, bottom + 1, 2 * dash):
        end = min(y + dash, bottom)
        pieces += [((left, y), (left, end)), ((right, y), (right, end))]
    # The dark rim separates the line from the photo.
    layers = ((colour, line),) if thumbnail else ((DARK, line + 2), (colour, line))
    for ink, width in layers:
        for start, stop in pieces:
            cv2.line(canvas, start, stop, ink, width)


def overlap(a: Area, b: Area) -> bool:
    """Return whether two half-open areas share a pixel."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
