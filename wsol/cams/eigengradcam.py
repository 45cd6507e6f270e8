"""Eigen-Grad-CAM: the first principal component of gradient times activation.

Gildenblat and contributors, pytorch-grad-cam, 2021, https://github.com/jacobgil/pytorch-grad-cam; no paper: Eigen-CAM
(https://arxiv.org/abs/2008.00299) of the products that HiResCAM sums, so that the map depends on the class. Each
position's dy_c/dF_d F_d are projected on their first principal component, the mean position taken off first.

The sign of a principal component is arbitrary. We take the one with which the map goes along with the evidence for
the class, the HiResCAM map, over the positions. pytorch-grad-cam keeps the sign that the SVD happens to give.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsol.cams import CAMS
from wsol.cams._eigen import principal
from wsol.cams._gradient import GradientMethod


@CAMS.register("eigengradcam")
@dataclass(frozen=True, kw_only=True)
class EigenGradCAM(GradientMethod):
    """The first principal component of gradient times activation."""

    def weigh(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Return maps (B, h, w)."""
        products = gradient * activation
        plane = principal(products)
        # The plane has mean 0: its product with the evidence is their covariance.
        covariance = (plane * products.sum(1)).sum((1, 2), keepdim=True)
        return torch.where(covariance < 0, -plane, plane)
