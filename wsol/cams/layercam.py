"""LayerCAM: each activation weighed by its own positive gradient; also for early, finer layers.

Jiang, Zhang, Hou, Cheng, Wei, "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE TIP 2021,
https://mmcheng.net/mftp/Papers/21TIP_LayerCAM.pdf. Equations 6 to 8: M_c = sum_d relu(dy_c/dF_d) F_d, element by
element, as in pytorch-grad-cam and torchcam. The paper's final ReLU is left to the normalization of the maps. Several
layers are fused by their mean; the paper and torchcam take the element-wise maximum (see `_layers.fuse`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsol.cams import CAMS
from wsol.cams._gradient import GradientMethod


@CAMS.register("layercam")
@dataclass(frozen=True, kw_only=True)
class LayerCAM(GradientMethod):
    """Each activation weighed by its own positive gradient; also for early, finer layers."""

    def weigh(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Return maps (B, h, w)."""
        return torch.einsum("bdhw,bdhw->bhw", gradient.relu(), activation)
