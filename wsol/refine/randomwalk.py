"""Random walk: scores spread along similar colours, many short steps on a coarse grid.

The propagation of PSA (Ahn and Kwak, CVPR 2018, https://arxiv.org/abs/1803.10464) and IRNet with an affinity that needs
no network: a Gaussian of the colour difference between grid positions. Every step replaces a score by its mean under
the transition matrix; see `wsol.ops.random_walk` for the walk itself, which learned affinities use as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wsol.errors import ConfigError
from wsol.ops.random_walk import neighbour_offsets, random_walk
from wsol.refine import REFINERS
from wsol.refine.base import check_inputs


@REFINERS.register("randomwalk")
@dataclass(frozen=True)
class RandomWalk:
    """Random walk on the colours of the image.

    Attributes:
        stride: Pixels between two grid positions.
        radius: Positions nearer than this are neighbours, in grid positions.
        srgb: Standard deviation of the affinity, in grey levels.
        steps: Number of steps.
    """

    stride: int = 4
    radius: int = 5
    srgb: float = 3.0
    steps: int = 16

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ConfigError(f"must be at least 1, got {self.stride}", where="stride")
        if self.radius < 2:
            raise ConfigError(f"must be at least 2, got {self.radius}", where="radius")
        if not 0 < self.srgb < np.inf:
            raise ConfigError(f"must be positive, got {self.srgb}", where="srgb")
        if self.steps < 0:
            raise ConfigError(f"must be at least 0, got {self.steps}", where="steps")

    def __call__(self, image: NDArray[np.uint8], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the scores after the walk, whose sum over C stays; see `wsol.refine.base.Refiner`."""
        check_inputs(image, scores)
        height, width = image.shape[:2]
        grid = (-(-width // self.stride), -(-height // self.stride))
        colours = cv2.resize(np.ascontiguousarray(image), grid, interpolation=cv2.INTER_AREA)
        coarse = [cv2.resize(_plane(plane), grid, interpolation=cv2.INTER_AREA) for plane in scores]
        offsets = neighbour_offsets(self.radius)
        affinity = _colour_affinity(np.asarray(colours, dtype=np.float32), offsets, self.srgb)
        walked = random_walk(np.stack(coarse), affinity, offsets, beta=1, steps=self.steps)
        full = [cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR) for plane in walked]
        # Rounding may leave [0, 1] by an ulp.
        return np.stack(full).astype(np.float32, copy=False).clip(0, 1)


def _plane(plane: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.ascontiguousarray(plane, dtype=np.float32)


def _colour_affinity(colours: NDArray[np.float32], offsets: NDArray[np.int64], srgb: float) -> NDArray[np.float32]:
    """Return exp(-|dI|^2 / (2 srgb^2)) between each position of (h, w, 3) and its neighbours: (n_offsets, h, w)."""
    height, width = colours.shape[:2]
    affinity = np.zeros((len(offsets), height, width), np.float32)
    for plane, (dy, dx) in zip(affinity, offsets.tolist(), strict=True):
        left, right = max(0, -dx), min(width, width - dx)
        if dy < height and left < right:
            here, there = colours[: height - dy, left:right], colours[dy:, left + dx : right + dx]
            plane[: height - dy, left:right] = np.exp(-np.square(here - there).sum(axis=2) / (2 * srgb**2))
    return affinity
