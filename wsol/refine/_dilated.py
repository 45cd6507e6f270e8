"""What PAMR and PAR share: the 8 neighbours of every pixel at several distances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor
from torch.nn import functional

from wsol.errors import ConfigError, DataError

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


def average(masks: Tensor, weights: Sequence[Tensor], dilations: Sequence[int]) -> Tensor:
    """Return the sum of the neighbours (B, C, H, W) times their weights, each (B, 1, H, W)."""
    total = masks.new_zeros(masks.shape)
    for weight, neighbour in zip(weights, neighbours(masks, dilations), strict=True):
        total.addcmul_(weight, neighbour)
    return total


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
