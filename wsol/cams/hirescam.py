"""HiResCAM: gradient times activation at each position, summed over the channels.

Draelos, Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks", 2020,
https://arxiv.org/abs/2011.08891. M_c = sum_d dy_c/dF_d F_d, element by element; before a linear head over the
positions, pooled or not, the mean of the map is the score less its bias. As in pytorch-grad-cam; torchcam does not
have it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsol.cams import CAMS
from wsol.cams._gradient import GradientMethod


@CAMS.register("hirescam")
@dataclass(frozen=True, kw_only=True)
class HiResCAM(GradientMethod):
    """Gradient times activation at each position, summed over the channels."""

    def weigh(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Return maps (B, h, w)."""
        return torch.einsum("bdhw,bdhw->bhw", gradient, activation)
