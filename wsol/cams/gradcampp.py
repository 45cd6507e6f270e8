"""Grad-CAM++: each channel weighed by its positive gradients, position by position.

Chattopadhay, Sarkar, Howlader, Balasubramanian, "Grad-CAM++: Generalized Gradient-based Visual Explanations for Deep
Convolutional Networks", WACV 2018, https://arxiv.org/abs/1710.11063. Equations 5, 6 and 19 with Y = exp(score), whose
positive factor exp(score) is left out: a = g^2 / (2 g^2 + g^3 sum F), w_d = sum a relu(g), M_c = sum_d w_d F_d. The
fraction is taken as 1 / (2 + g sum F) where g is not 0: the same number, without a constant against division by the
tiny g^2. The paper's final ReLU is left to the normalization of the maps.

We follow pytorch-grad-cam, but for the 1e-6 that it adds to the denominator: behind a pooled head g^2 is smaller than
that, so the constant decides the weights (`eps` puts it back). torchcam 0.5 means to divide, but does so on a copy
that it drops, so that its weights are sum g^2 relu(g).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsol.cams import CAMS
from wsol.cams._gradient import GradientMethod


@CAMS.register("gradcampp")
@dataclass(frozen=True, kw_only=True)
class GradCAMPlusPlus(GradientMethod):
    """Each channel weighed by its positive gradients, position by position."""

    eps: float = 0.0
    """Added to the denominator 2 g^2 + g^3 sum F; 1e-6 gives the maps of pytorch-grad-cam."""

    def weigh(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Return maps (B, h, w)."""
        denominator = 2 + gradient * activation.sum((2, 3), keepdim=True)
        if self.eps:
            denominator += self.eps / gradient.square()
        # Features with negative values can bring the denominator to 0.
        alpha = torch.where(denominator == 0, 1.0, denominator).reciprocal()
        # The sum over the positions, less the number of positions by which every gradient map is multiplied.
        return torch.einsum("bd,bdhw->bhw", (alpha * gradient.relu()).mean((2, 3)), activation)
