"""From pixels to network input: the resize and normalization of timm and the papers, and training augmentation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from wsol.errors import ConfigError
from wsol.schema import IGNORE

Interpolation = Literal["bilinear", "bicubic"]
Resize = Literal["squash", "keep", "native"]
Size = tuple[int, int]
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_PADDING = (124, 116, 104)  # the mean colour of ImageNet: near zero after normalization
_CROPS = 10  # drawn at most to find one that will do


def input_size(size: Size, *, img_size: int | None = None, resize: Resize = "squash", stride: int = 1) -> Size:
    """Return the (h, w) at which a network sees an image.

    Args:
        size: (H, W) of the image.
        img_size: Side of the input (squash), its longer side (keep), or the most that the image's longer side may
            have (native; without it the image keeps its own size).
        resize: "squash" to img_size x img_size, "keep" the aspect ratio, or stay at the image's "native" size.
        stride: With "keep", each side becomes the nearest multiple of it, at least one; with "native", the next
            multiple above.

    Raises:
        ConfigError: On an unknown rule or a size below 1.
    """
    if stride < 1 or min(size) < 1 or (img_size is not None and img_size < 1):
        raise ConfigError(f"sizes must be positive, got img_size={img_size}, stride={stride}, image {size}")
    if resize == "native":
        longest = max(size)
        side = longest if img_size is None else min(img_size, longest)
        # In integers: 500 * (400 / 500) is a little more than 400.
        height, width = (-(-length * side // (longest * stride)) * stride for length in size)
        return height, width
    if img_size is None:
        raise ConfigError(f"resize rule '{resize}' needs a size", hint="give img_size")
    if resize == "squash":
        return img_size, img_size
    if resize != "keep":
        raise ConfigError(f"unknown resize rule '{resize}'", hint="choose from keep, native, squash")
    scale = img_size / max(size)
    height, width = (max(1, math.floor(side * scale / stride + 0.5)) * stride for side in size)
    return height, width


def resize_image(
    image: NDArray[np.uint8], size: Size, *, interpolation: Interpolation = "bilinear"
) -> NDArray[np.uint8]:
    """Resize with Pillow's antialiased filter: uint8 (H, W, 3) to uint8 (h, w, 3)."""
    if interpolation not in _FILTERS:
        raise ConfigError(f"unknown interpolation '{interpolation}'", hint="choose from bicubic, bilinear")
    if image.shape[:2] == tuple(size):
        return image
    return np.array(Image.fromarray(image).resize((size[1], size[0]), _FILTERS[interpolation]))


def to_input(
    image: NDArray[np.uint8],
    size: Size,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: Interpolation = "bilinear",
) -> NDArray[np.float32]:
    """Resize and normalize an image, equal to torchvision's Resize, ToTensor and Normalize on a Pillow image.

    Args:
        image: uint8 (H, W, 3) RGB.
        size: (h, w) of the result.
        mean: Three channel means for values in [0, 1].
        std: Three channel standard deviations.
        interpolation: Filter of the resize.

    Returns:
        float32 (3, h, w): (pixel / 255 - mean) / std.
    """
    resized = resize_image(image, size, interpolation=interpolation)
    planes = np.ascontiguousarray(resized.transpose(2, 0, 1)).astype(np.float32)
    planes /= np.float32(255)
    planes -= np.asarray(mean, dtype=np.float32)[:, None, None]
    planes /= np.asarray(std, dtype=np.float32)[:, None, None]
    return planes


def crop_window(
    size: Size, rng: np.random.Generator, *, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Draw the window of a random resized crop by the rule of torchvision's RandomResizedCrop.

    Args:
        size: (H, W) of the image.
        rng: Source of randomness.
        scale: Range of the window's share of the image area.
        ratio: Range of its width / height; drawn evenly in its logarithm.

    Returns:
        top, left, height, width in pixels; after ten misses the largest central window within the ratio.
    """
    height, width = size
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = max(1, min(width, round(height * aspect))), max(1, min(height, round(width / aspect)))
    return (height - h) // 2, (width - w) // 2, h, w


def augment(
    image: NDArray[np.uint8],
    size: Size,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    jitter: float = 0.0,
    interpolation: Interpolation = "bilinear",
) -> NDArray[np.uint8]:
    """Draw a training view: random resized crop, horizontal flip, colour jitter.

    Args:
        image: uint8 (H, W, 3) RGB.
        size: (h, w) of the view.
        rng: Source of randomness.
        scale: Range of the crop's share of the area.
        ratio: Range of the crop's aspect ratio.
        flip: Probability of a mirror image.
        jitter: Brightness, contrast and saturation are each scaled by a factor in [1 - jitter, 1 + jitter].
        interpolation: Filter of the resize.

    Returns:
        uint8 (h, w, 3).
    """
    top, left, height, width = crop_window((image.shape[0], image.shape[1]), rng, scale=scale, ratio=ratio)
    view = np.ascontiguousarray(image[top : top + height, left : left + width])
    view = resize_image(view, size, interpolation=interpolation)
    if rng.random() < flip:
        view = np.ascontiguousarray(view[:, ::-1])
    return _jitter(view, rng, jitter) if jitter else view


def augment_pair(
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    size: Size,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (0.5, 2.0),
    flip: float = 0.5,
    jitter: float = 0.0,
    photometric: bool = False,
    will_do: Callable[[NDArray[np.uint8]], bool] | None = None,
    interpolation: Interpolation = "bilinear",
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw a training view of an image and its mask: random scale, crop with padding, flip.

    Args:
        image: uint8 (H, W, 3) RGB.
        mask: uint8 (H, W) labels.
        size: (h, w) of the view.
        rng: Source of randomness.
        scale: Range of the zoom; at 1 the image just fits into the view.
        flip: Probability of a mirror image.
        jitter: As in `augment`, for the image only.
        photometric: Distort the colours of the image, see `distort_colours`.
        will_do: Says of the labels of a crop whether it will do; up to ten crops are drawn, the last is taken as it is.
        interpolation: Filter for the image; the mask is always sampled at the nearest pixel.

    Returns:
        uint8 (h, w, 3) and uint8 (h, w); padding is the ImageNet mean colour and 255.
    """
    height, width = mask.shape
    zoom = min(size[0] / height, size[1] / width) * rng.uniform(*scale)
    zoomed = max(1, round(height * zoom)), max(1, round(width * zoom))
    pixels = resize_image(image, zoomed, interpolation=interpolation)
    labels = np.array(Image.fromarray(mask).resize((zoomed[1], zoomed[0]), Image.Resampling.NEAREST))
    view = np.empty((*size, 3), dtype=np.uint8)
    view[:] = _PADDING
    truth = np.full(size, IGNORE, dtype=np.uint8)
    for _ in range(_CROPS):
        source, target = zip(*(_overlap(a, b, rng) for a, b in zip(zoomed, size, strict=True)), strict=True)
        if will_do is None or will_do(labels[source]):
            break
    view[target] = distort_colours(pixels[source], rng) if photometric else pixels[source]
    truth[target] = labels[source]
    if rng.random() < flip:
        view, truth = np.ascontiguousarray(view[:, ::-1]), np.ascontiguousarray(truth[:, ::-1])
    return (_jitter(view, rng, jitter) if jitter else view), truth


def distort_colours(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Distort brightness, contrast, saturation and hue, each in half of the draws.

    The photometric distortion of SSD (Liu et al., ECCV 2016) with the ranges that segmentation uses: brightness +-32,
    contrast and saturation times 0.5 to 1.5, hue +-36 degrees; contrast comes before or after the colours.

    Args:
        image: uint8 (H, W, 3) RGB.
        rng: Source of randomness.

    Returns:
        uint8 (H, W, 3).
    """

    def drawn() -> bool:
        return bool(rng.integers(2))

    def scaled(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.asarray(np.clip(values * np.float32(rng.uniform(0.5, 1.5)), 0, 255), dtype=np.uint8)

    if drawn():
        image = np.clip(image + np.float32(rng.uniform(-32, 32)), 0, 255).astype(np.uint8)
    contrast_first = drawn()
    if contrast_first and drawn():
        image = scaled(image)
    other_saturation, other_hue = drawn(), drawn()
    if other_saturation or other_hue:
        hsv = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), dtype=np.uint8)  # the hue in steps of 2 degrees
        if other_saturation:
            hsv[..., 1] = scaled(hsv[..., 1])
        if other_hue:
            hsv[..., 0] = (hsv[..., 0].astype(np.int16) + rng.integers(-18, 18)) % 180
        image = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), dtype=np.uint8)
    return image if contrast_first or not drawn() else scaled(image)


def _overlap(have: int, want: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Place a line of `have` pixels at random in one of `want`: crop when longer, pad when shorter."""
    offset = int(rng.integers(abs(have - want) + 1))
    if have >= want:
        return slice(offset, offset + want), slice(0, want)
    return slice(0, have), slice(offset, offset + have)


def _jitter(image: NDArray[np.uint8], rng: np.random.Generator, strength: float) -> NDArray[np.uint8]:
    picture = Image.fromarray(image)
    steps = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for index in rng.permutation(len(steps)):
        picture = steps[int(index)](picture).enhance(rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return np.array(picture)
