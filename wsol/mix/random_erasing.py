"""Random erasing: hide a rectangle of random area and aspect in some of the images.

Zhong et al., "Random Erasing Data Augmentation", AAAI 2020, https://arxiv.org/abs/1708.04896. Area and aspect are drawn
until the rectangle fits into the image; it is filled with the mean color, one random color, or noise. Labels stay as
they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from wsol.errors import ConfigError
from wsol.mix import MIXES
from wsol.mix._blend import delete, tensor_like
from wsol.mix._boxes import Box, check_range, check_share
from wsol.mix.base import Context, Draws, Family, Mixed, MixStrategy

if TYPE_CHECKING:
    from torch import Tensor

_TRIES = 100


@MIXES.register("random_erasing")
@dataclass(frozen=True)
class RandomErasing(MixStrategy):
    """A hidden rectangle."""

    family: ClassVar[Family] = "delete"
    paper: ClassVar[str] = "Zhong et al., AAAI 2020"

    prob: float = 0.5
    """Probability for an image; 0.25 in the recipes of vision transformers."""
    area: tuple[float, float] = (0.02, 0.4)
    """Share of the image, drawn uniformly; timm goes to 1/3."""
    min_aspect: float = 0.3
    """Height by width is drawn between this and its inverse."""
    aspect: Literal["uniform", "log"] = "uniform"
    """uniform: as the paper's code, more tall rectangles than wide ones; log: uniform in its logarithm (timm)."""
    fill: Literal["mean", "color", "pixel"] = "mean"
    """mean: the mean color; color: one normal number a channel; pixel: one a pixel and channel."""

    def __post_init__(self) -> None:
        check_share("random_erasing", "prob", self.prob)
        check_range("random_erasing", "area", self.area, low=0, high=1)
        if not 0 < self.min_aspect <= 1:
            raise ConfigError(f"min_aspect must lie in (0, 1], got {self.min_aspect}", where="random_erasing")

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `boxes`, (top, left, bottom, right) of each image, empty where none is erased, and `fill`.

        The fill is float32 (B, C, 1, 1) for colors, (B, C, H, W) for pixels, 0 for the mean.
        """
        count, channels, height, width = x.shape
        boxes = [self._box((height, width), generator) for _ in range(count)]
        fill: object = 0.0
        if self.fill != "mean":
            shape = (count, channels, 1, 1) if self.fill == "color" else tuple(x.shape)
            fill = generator.standard_normal(shape, dtype=np.float32)
        return {"boxes": boxes, "fill": fill}

    def _box(self, size: tuple[int, int], generator: np.random.Generator) -> Box:
        if generator.random() >= self.prob:
            return 0, 0, 0, 0
        for _ in range(_TRIES):
            share = generator.uniform(*self.area)
            if self.aspect == "log":
                limit = -math.log(self.min_aspect)
                ratio = math.exp(generator.uniform(-limit, limit))
            else:
                ratio = generator.uniform(self.min_aspect, 1 / self.min_aspect)
            height, width = erased_sides(size, share, ratio)
            if height < size[0] and width < size[1]:
                top = int(generator.integers(size[0] - height + 1))
                left = int(generator.integers(size[1] - width + 1))
                return top, left, top + height, left + width
        return 0, 0, 0, 0

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Fill the rectangles; see `MixStrategy.mix` and `delete`."""
        hidden = np.zeros((len(x), x.shape[2], x.shape[3]), dtype=bool)
        for image, (top, left, bottom, right) in zip(hidden, draws["boxes"], strict=True):
            image[top:bottom, left:right] = True
        return delete(x, y, hidden, fill=tensor_like(draws["fill"], x))


def erased_sides(size: tuple[int, int], share: float, aspect: float) -> tuple[int, int]:
    """Return (height, width) of the rectangle with a share of an image's area and an aspect, height by width."""
    pixels = share * size[0] * size[1]
    return round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
