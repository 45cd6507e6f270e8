"""What the eigen methods share: the first principal component over the positions."""

from __future__ import annotations

import torch
from torch import Tensor


def principal(features: Tensor) -> Tensor:
    """Return how far each position lies along the first principal component of the positions.

    The positions are points in the space of the channels, moved so that their mean is 0, as in pytorch-grad-cam;
    without that the first component is little more than the mean itself.

    Args:
        features: float32 (B, D, h, w).

    Returns:
        (B, h, w) with mean 0. The sign is arbitrary: the caller chooses one.
    """
    points = features.flatten(2)
    _, scales, directions = torch.linalg.svd(points - points.mean(2, keepdim=True), full_matrices=False)
    plane: Tensor = scales[:, :1] * directions[:, 0]
    return plane.reshape(-1, *features.shape[2:])
