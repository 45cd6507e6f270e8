"""What PAMR and PAR share: the 8 neighbours of every pixel at several distances."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from wsol.errors import ConfigError, DataError
from wsol.models.device import find_device

STEPS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx)
DILATIONS = (1, 2, 4, 8, 12, 24)


def neighbours(values: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """Yield views of (B, C, H, W) shifted to each neighbour, border repeated: `STEPS` at each dilation."""
    height, width, border = values.shape[2], values.shape[3], max(dilations)
    padded = functional.pad(values, [border] * 4, mode="replicate")
    for dilation in dilations:
        for dy, dx in STEPS:
            top, left = border + dy * dilation, border + dx * dilation
            yield padded[:, :, top : top + height, left : left + width]


def deviation(images: Tensor, dilations: Sequence[int], *, count: int) -> Tensor:
    """Return the standard deviation (B, C, H, W) of the neighbours of every pixel, divided by count - 1.

    Args:
        images: (B, C, H, W).
        dilations: Distances of the neighbours.
        count: How many values these are; with the pixel itself at each dilation, 9 a dilation.
    """
    # Differences to the centre shift the mean but not the deviation, and are exact for integer images.
    total, squares = torch.zeros_like(images), torch.zeros_like(images)
    for neighbour in neighbours(images, dilations):
        difference = neighbour - images
        total += difference
        squares.addcmul_(difference, difference)
    return ((squares - total.square() / count).clamp_(min=0) / (count - 1)).sqrt_()


@torch.no_grad()
def diffuse(
    images: Tensor,
    masks: Tensor,
    affinities: Callable[[Tensor, Sequence[int]], list[Tensor]],
    *,
    iterations: int,
    dilations: Sequence[int],
) -> Tensor:
    """Replace masks by the sum of their neighbours times their affinity, again and again; no gradient flows.

    Args:
        images: (B, 3, H, W).
        masks: (B, C, H, W).
        affinities: Float images and dilations to one weight (B, 1, H, W) a neighbour.
        iterations: How often.
        dilations: Distances of the 8 neighbours, in pixels.

    Returns:
        float32 (B, C, H, W) on the device of the masks.

    Raises:
        ConfigError: When an option is out of range.
        DataError: When the sizes differ.
    """
    check_options(iterations, dilations)
    check_arguments(images, masks)
    weights = affinities(images.float(), dilations)
    refined = masks.to(torch.float32, copy=True)
    for _ in range(iterations):
        total = torch.zeros_like(refined)
        for weight, neighbour in zip(weights, neighbours(refined, dilations), strict=True):
            total.addcmul_(weight, neighbour)
        refined = total
    return refined


def as_batch(image: NDArray[np.uint8], scores: NDArray[np.float32], device: str) -> tuple[Tensor, Tensor]:
    """Return an image (H, W, 3) and copies of its scores (C, H, W) as float32 batches of one on a device.

    Raises:
        ModelError: When there is no such device.
    """
    found = find_device(device)
    pixels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None].to(found)
    return pixels, torch.from_numpy(np.array(scores, dtype=np.float32))[None].to(found)


def check_arguments(images: Tensor, masks: Tensor) -> None:
    """Refuse images and masks that do not belong together.

    Raises:
        DataError: Unless they are (B, 3, H, W) and (B, C, H, W).
    """
    fit = images.ndim == masks.ndim == 4 and images.shape[::2] == masks.shape[::2] and images.shape[3] == masks.shape[3]
    if not fit:
        raise DataError(f"expected images (B, 3, H, W) and masks (B, C, H, W), got {images.shape} and {masks.shape}")


def check_options(iterations: int, dilations: Sequence[int]) -> None:
    """Refuse options out of range.

    Raises:
        ConfigError: Naming the option.
    """
    if iterations < 0:
        raise ConfigError(f"must be at least 0, got {iterations}", where="iterations")
    if not dilations or min(dilations) < 1:
        raise ConfigError(f"must be positive distances, got {tuple(dilations)}", where="dilations")
