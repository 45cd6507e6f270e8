"""Eigen-CAM of pytorch-grad-cam with a definite sign."""

from __future__ import annotations

from typing import Any

import numpy as np
from pytorch_grad_cam import EigenCAM


class SignedEigenCAM(EigenCAM):  # type: ignore[misc]
    """Turns each map as ours is: the position farthest from the mean is positive. The SVD leaves the sign open."""

    def get_cam_image(self, *args: Any, **keywords: Any) -> Any:
        """Return maps (B, h, w)."""
        maps = super().get_cam_image(*args, **keywords)
        low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
        return np.where(-low > high, -maps, maps)
