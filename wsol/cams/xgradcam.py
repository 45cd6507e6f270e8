"""XGrad-CAM: each channel weighed by its gradients, averaged with its activations as weights.

Fu, Hu, Dong, Guo, Gao, Li, "Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs", BMVC 2020,
https://arxiv.org/abs/2008.02312. w_d = sum(F_d dy_c/dF_d) / sum F_d, M_c = sum_d w_d F_d, so that the map sums to the
total of gradient times activation. pytorch-grad-cam adds 1e-7 and torchcam 1e-8 to the denominator; here a channel
whose sum is exactly 0 has the denominator 1. The paper's final ReLU is left to the normalization of the maps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsol.cams import CAMS
from wsol.cams._gradient import GradientMethod


@CAMS.register("xgradcam")
@dataclass(frozen=True, kw_only=True)
class XGradCAM(GradientMethod):
    """Each channel weighed by its gradients, averaged with its activations as weights."""

    def weigh(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Return maps (B, h, w)."""
        total = activation.sum((2, 3))
        weights = (gradient * activation).sum((2, 3)) / torch.where(total == 0, 1.0, total)
        return torch.einsum("bd,bdhw->bhw", weights, activation)
