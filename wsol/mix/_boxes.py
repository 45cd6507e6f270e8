"""Boxes and numbers that the strategies which cut share."""

from __future__ import annotations

from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from wsol.errors import ConfigError

Box = tuple[int, int, int, int]
BoxRule = Literal["clovaai", "timm"]
Mode = Literal["batch", "pair", "elem"]
T = TypeVar("T", bound=np.generic)


def clip_box(
    size: tuple[int, int], sides: tuple[int, int], centre: tuple[int, int], *, rule: BoxRule = "clovaai"
) -> Box:
    """Return a box around a pixel, clipped at the border.

    Args:
        size: (H, W) of the image.
        sides: (height, width) of the box before clipping.
        centre: (row, column).
        rule: "clovaai": [c - side // 2, c + side // 2), so odd sides lose a pixel; "timm" (as of 1.0.31):
            [c - side // 2, c + (side + 1) // 2).

    Returns:
        top, left, bottom, right, half-open; may be empty.
    """
    extra = 1 if rule == "timm" else 0
    (top, bottom), (left, right) = (
        (max(middle - side // 2, 0), min(middle + (side + extra) // 2, length))
        for length, side, middle in zip(size, sides, centre, strict=True)
    )
    return top, left, bottom, right


def area(box: Box) -> int:
    """Return the number of pixels of a box."""
    top, left, bottom, right = box
    return max(bottom - top, 0) * max(right - left, 0)


def draw_lam(
    count: int, generator: np.random.Generator, *, alpha: float, prob: float, mode: Mode = "batch"
) -> float | NDArray[np.float64]:
    """Draw lambda ~ Beta(alpha, alpha), the share of the own image; 1 where nothing is mixed.

    Args:
        count: Batch size.
        generator: Source of randomness.
        alpha: Parameter of the distribution.
        prob: Probability of mixing.
        mode: See `spread`.

    Returns:
        One number for "batch", else (B,).
    """
    if mode == "batch":
        mixes = generator.random() < prob
        lam = float(generator.beta(alpha, alpha))
        return lam if mixes else 1.0
    own = np.where(generator.random(count) < prob, generator.beta(alpha, alpha, count), 1.0)
    return spread(own, mode=mode)


def spread(values: NDArray[T], *, mode: Mode) -> NDArray[T]:
    """Let the images of a batch share draws.

    Args:
        values: (B, ...), one draw an image.
        mode: "elem" keeps them; "pair" gives the second half those of the first in reverse, so that an image and its
            partner in the reversed batch share one.
    """
    if mode == "elem":
        return values
    half = (len(values) + 1) // 2
    return np.concatenate([values[:half], values[: len(values) // 2][::-1]])


def check_share(name: str, option: str, value: float) -> None:
    """Refuse a value that is no share.

    Raises:
        ConfigError: Naming the option.
    """
    if not 0 <= value <= 1:
        raise ConfigError(f"{option} must lie in [0, 1], got {value}", where=name)


def check_range(name: str, option: str, limits: tuple[float, float], *, low: float, high: float) -> None:
    """Refuse a pair that is no range between two limits.

    Raises:
        ConfigError: Naming the option.
    """
    if not low <= limits[0] <= limits[1] <= high:
        raise ConfigError(f"{option} must be a range within [{low:g}, {high:g}], got {limits}", where=name)
