"""Guided filter: each score becomes a local linear function of the colour, so its edges move to those of the image.

He, Sun, Tang, "Guided Image Filtering", ECCV 2010 and TPAMI 2013, https://doi.org/10.1109/TPAMI.2012.213. In every
window the score is fitted by a . I + b, ridge regression with weight eps on a; a pixel gets the mean over the windows
that hold it (colour guidance, equations 19 to 21; windows are cut off at the border of the image).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wsol.errors import ConfigError
from wsol.refine import REFINERS
from wsol.refine.base import check_inputs

_Floats = NDArray[np.float32]


@REFINERS.register("guided")
@dataclass(frozen=True)
class GuidedFilter:
    """Guided filter with the colour image as guide.

    Attributes:
        radius: Windows are squares of 2 radius + 1 pixels.
        eps: Weight of the ridge, for colours in [0, 1]: edges of less than its square root in contrast are smoothed.
    """

    radius: int = 16
    eps: float = 1e-3

    def __post_init__(self) -> None:
        if self.radius < 1:
            raise ConfigError(f"must be at least 1, got {self.radius}", where="radius")
        if not 0 < self.eps < np.inf:
            raise ConfigError(f"must be positive, got {self.eps}", where="eps")

    def __call__(self, image: NDArray[np.uint8], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the filtered scores, clipped to [0, 1]; see `wsol.refine.base.Refiner`."""
        check_inputs(image, scores)
        guide = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32) / np.float32(255)
        # The fit does not change when the guide is shifted; small values keep the products exact.
        guide -= guide.mean(axis=(1, 2), keepdims=True)
        mean = _Mean(image.shape[:2], self.radius)
        means = [mean(channel) for channel in guide]
        inverse = _inverse(guide, means, mean, self.eps)
        refined = np.empty(scores.shape, np.float32)
        for plane, out in zip(scores, refined, strict=True):
            plane = np.ascontiguousarray(plane, dtype=np.float32)
            average = mean(plane)
            covariance = [mean(guide[c] * plane) - means[c] * average for c in range(3)]
            slopes = [_dot(row, covariance) for row in inverse]
            constant = mean(average - _dot(slopes, means))
            out[:] = constant + _dot([mean(slope) for slope in slopes], guide)
        return refined.clip(0, 1, out=refined)


class _Mean:
    """The mean over the part of each window that lies in the image."""

    def __init__(self, shape: tuple[int, ...], radius: int) -> None:
        self.side = 2 * radius + 1
        self.share = np.float32(1) / self._sum(np.ones(shape, np.float32))

    def __call__(self, values: _Floats) -> _Floats:
        return self._sum(values) * self.share

    def _sum(self, values: _Floats) -> _Floats:
        size = (self.side, self.side)
        sums = cv2.boxFilter(values, cv2.CV_32F, size, normalize=False, borderType=cv2.BORDER_CONSTANT)
        return np.asarray(sums, dtype=np.float32)


def _dot(one: Sequence[_Floats], other: Sequence[_Floats] | _Floats) -> _Floats:
    return one[0] * other[0] + one[1] * other[1] + one[2] * other[2]


def _inverse(guide: _Floats, means: list[_Floats], mean: _Mean, eps: float) -> list[list[_Floats]]:
    """Return the inverse of the colour covariance of each window plus eps on the diagonal: 3 x 3 planes (H, W)."""

    def entry(c: int, d: int) -> _Floats:
        return mean(guide[c] * guide[d]) - means[c] * means[d]

    rr, gg, bb = (np.maximum(entry(c, c), 0) + np.float32(eps) for c in range(3))
    rg, rb, gb = entry(0, 1), entry(0, 2), entry(1, 2)
    r_r, r_g, r_b = gg * bb - gb * gb, rb * gb - rg * bb, rg * gb - rb * gg
    g_g, g_b, b_b = rr * bb - rb * rb, rg * rb - rr * gb, rr * gg - rg * rg
    determinant = rr * r_r + rg * r_g + rb * r_b
    adjugate = ((r_r, r_g, r_b), (r_g, g_g, g_b), (r_b, g_b, b_b))
    return [[np.divide(minor, determinant, dtype=np.float32) for minor in row] for row in adjugate]
