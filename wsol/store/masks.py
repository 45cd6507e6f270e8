"""Label masks on disk: palette PNG, confidence beside it, both loose or in shards; and COCO JSON."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from wsol.errors import StoreError
from wsol.ops.palette import voc_palette
from wsol.schema import MOST_PIXELS, PseudoMask
from wsol.store.atomic import atomic_write, inside
from wsol.store.shards import has_file, read_file

_FORMATS = ("PNG", "BMP", "GIF", "TIFF")
_PALETTE = voc_palette().tobytes()


def mask_path(run: Path, image_id: str) -> Path:
    """Return where the mask of an image lies in a run folder; "/" in ids become folders."""
    return run / "masks" / f"{image_id}.png"


def confidence_path(run: Path, image_id: str) -> Path:
    """Return where the confidence of a mask lies in a run folder."""
    return run / "confidence" / f"{image_id}.png"


def encode_mask(labels: NDArray[np.uint8]) -> bytes:
    """Return uint8 (H, W) labels as a mode-P PNG with the VOC palette."""
    image = Image.fromarray(np.ascontiguousarray(labels), mode=None).convert("L")
    image.putpalette(_PALETTE)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=False)
    return buffer.getvalue()


def write_mask(run: Path, mask: PseudoMask) -> int:
    """Write a mask, and its confidence as an 8-bit PNG (255 = certain) where there is one.

    Returns:
        Size of the mask file in bytes.
    """
    if mask.confidence is not None:
        levels = np.rint(mask.confidence.astype(np.float32) * 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(levels).save(buffer, format="PNG")
        with atomic_write(inside(run, confidence_path(run, mask.id))) as stream:
            stream.write(buffer.getbuffer())
    data = encode_mask(mask.labels)
    with atomic_write(inside(run, mask_path(run, mask.id))) as stream:
        stream.write(data)
    return len(data)


def read_labels(path: Path) -> NDArray[np.uint8]:
    """Read an index mask.

    Args:
        path: A mode-P or mode-L PNG; the pixel values are the labels.

    Returns:
        uint8 (H, W).

    Raises:
        StoreError: When the file is missing, torn, or a colour picture instead of indices.
    """
    try:
        with Image.open(io.BytesIO(read_file(path)), formats=_FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise StoreError(f"{image.width} x {image.height} pixels are no mask of a photo", where=path)
            if image.mode not in ("P", "L", "1", "I;16", "I"):
                raise StoreError(
                    f"expected an index mask, got a {image.mode} picture",
                    where=path,
                    hint="save label ids, not colours",
                )
            indices = np.asarray(image)
            if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) <= 255:
                raise StoreError(f"label {indices.max()} is not in 0..255", where=path, hint="255 marks ignored pixels")
            return indices.astype(np.uint8)
    except FileNotFoundError as error:
        raise StoreError("no such mask", where=path) from error
    except StoreError:
        raise
    except UnidentifiedImageError as error:
        raise StoreError("cannot read the mask: not an image file", where=path) from error
    except Exception as error:  # decoders raise whatever they like on broken files
        raise StoreError(f"cannot read the mask: {error}", where=path) from error


def read_mask(run: Path, image_id: str) -> PseudoMask:
    """Read the mask of one image of a run, with its confidence where it was stored.

    Raises:
        StoreError: When it is missing or torn.
    """
    confidence: NDArray[np.float16] | None = None
    if has_file(confidence_path(run, image_id)):
        confidence = (read_labels(confidence_path(run, image_id)) / np.float32(255)).astype(np.float16)
    return PseudoMask(id=image_id, labels=read_labels(mask_path(run, image_id)), confidence=confidence)
