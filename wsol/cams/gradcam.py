"""Grad-CAM: each channel weighed by the mean gradient of the class score.

Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra, "Grad-CAM: Visual Explanations from Deep Networks via
Gradient-based Localization", ICCV 2017, https://arxiv.org/abs/1610.02391. Equations 1 and 2: a_d = mean of dy_c/dF_d,
M_c = sum_d a_d F_d, as in pytorch-grad-cam and torchcam. The paper's final ReLU is left to the normalization of the
maps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsol.cams import CAMS
from wsol.cams._gradient import GradientMethod


@CAMS.register("gradcam")
@dataclass(frozen=True, kw_only=True)
class GradCAM(GradientMethod):
    """Each channel weighed by the mean gradient of the class score."""

    def weigh(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Return maps (B, h, w)."""
        return torch.einsum("bd,bdhw->bhw", gradient.mean((2, 3)), activation)
