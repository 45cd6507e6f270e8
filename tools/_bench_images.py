"""The photo and the blurry scores that the refiners are timed on."""

from __future__ import annotations

from importlib.util import find_spec

import cv2
import numpy as np
from numpy.typing import NDArray

from wsol.refine import with_background

SIZE = (375, 500)


def photo(size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Return a photo of scikit-image at (H, W), or a synthetic scene where the package is missing."""
    if find_spec("skimage"):
        from skimage.data import chelsea

        return np.array(cv2.resize(chelsea(), size[::-1], interpolation=cv2.INTER_AREA))
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    return np.array(cv2.GaussianBlur(noise, (0, 0), 4)) // 2 + noise // 40


def blurry_scores(channels: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Return smooth maps of C - 1 classes with their background, as class activation maps are: float32 (C, H, W)."""
    rng = np.random.default_rng([channels, seed])
    maps = np.stack([cv2.GaussianBlur(rng.random(SIZE, np.float32), (0, 0), 30) for _ in range(channels - 1)])
    return with_background((maps - maps.min()) / (maps.max() - maps.min()), alpha=1)
