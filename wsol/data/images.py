"""Read any image file as RGB, or say why it cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from wsol.errors import DataError
from wsol.schema import MOST_PIXELS
from wsol.store.archives import opened

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
_SIDEWAYS = (5, 6, 7, 8)
_ORIENTATION = 0x0112


def read_image(path: Path, *, upright: bool = False) -> NDArray[np.uint8]:
    """Read an image as 8-bit RGB.

    Follows `PIL.Image.convert("RGB")`: alpha is dropped, palette, grey and CMYK are converted. 16-bit grey keeps
    its high byte, as PNG readers do for 16-bit colour. Of an animation, the first frame is read.

    Args:
        path: JPEG, PNG, BMP, GIF, PPM, TIFF or WebP, whatever its name: Pillow's readers of other formats run other
            programs (EPS) or are hardly looked after. Also a member of an archive or a URL, see `store.archives`.
        upright: Apply the EXIF orientation. A TIFF always stands upright: Pillow turns it while it decodes.

    Returns:
        uint8 (H, W, 3), C-contiguous.

    Raises:
        DataError: When the file is missing, truncated, no image, or has more than 2^27 pixels.
    """
    try:
        with Image.open(opened(path), formats=_FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            return np.array(_to_rgb(ImageOps.exif_transpose(image) if upright else image))
    except Exception as error:  # decoders raise whatever they like on broken files
        raise _unreadable(path, error) from error


def image_size(path: Path, *, upright: bool = False) -> tuple[int, int]:
    """Return (H, W) from the header of an image file, without decoding it.

    Args:
        path: Image file.
        upright: As `read_image` has it.

    Raises:
        DataError: When the file is missing or no image.
    """
    try:
        with Image.open(opened(path), formats=_FORMATS) as image:
            width, height = image.size
            # The header of a TIFF is read turned already.
            turned = upright and image.format != "TIFF" and image.getexif().get(_ORIENTATION) in _SIDEWAYS
    except Exception as error:  # as above
        raise _unreadable(path, error) from error
    return (width, height) if turned else (height, width)


def _to_rgb(image: Image.Image) -> Image.Image:
    if (image.mode == "I" and image.format == "PNG") or image.mode in _SIXTEEN_BIT:
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((np.clip(values, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"{image.mode}-mode pixels have no fixed range; convert the file to 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours; spares the user a warning of Pillow
    return image.convert("RGB")


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError("no such image", where=path)
    if isinstance(error, Image.DecompressionBombError):
        return DataError("too many pixels to be a photo", where=path, hint="cut it into tiles first")
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = "not an image file"
    return DataError(f"cannot read the image: {reason}", where=path, hint="fetch the file again, or leave it out")
