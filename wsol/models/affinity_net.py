"""AffinityNet: features whose distance says whether two near pixels belong to one class.

Ahn, Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised Semantic
Segmentation", CVPR 2018, https://arxiv.org/abs/1803.10464. The last three levels of a backbone go through 1x1
convolutions to 64, 128 and 256 channels and ELU, are brought to one grid of stride 8, concatenated, and mixed by a 1x1
convolution of 448 channels and ELU. The affinity of two positions is exp(-mean |f_i - f_j|).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsol.models.features import Backbone, to_size

_WIDTHS = (64, 128, 256)
_STRIDE = 8


class AffinityNet(nn.Module):
    """The heads of PSA on a timm backbone.

    Initial weights are those of the paper's code: Kaiming normal, and Xavier uniform with gain 4 for the last layer.
    The paper's backbones dilate to stride 8; where the levels here are coarser, they are resized bilinearly.

    Args:
        backbone: At least three levels.
        frozen: Train the heads only; the paper trains the backbone too.

    Attributes:
        stride: Pixels between two positions of the grid.
    """

    def __init__(self, backbone: Backbone, *, frozen: bool = False) -> None:
        super().__init__()
        self.backbone, self.frozen = backbone, frozen
        if frozen:
            backbone.requires_grad_(False)
        channels = backbone.channels[-len(_WIDTHS) :]
        widths = _WIDTHS[-len(channels) :]
        self.stride: int = max(_STRIDE, min(backbone.strides[-len(widths) :]))
        heads = [nn.Conv2d(have, want, 1, bias=False) for have, want in zip(channels, widths, strict=True)]
        self.heads = nn.ModuleList(heads)
        self.mix = nn.Conv2d(sum(widths), sum(widths), 1, bias=False)
        for head in heads:
            nn.init.kaiming_normal_(head.weight)
        nn.init.xavier_uniform_(self.mix.weight, gain=4)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, 448, H / stride, W / stride).

        Args:
            images: Normalized float (B, 3, H, W), sides multiples of `backbone.multiple`.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            levels = self.backbone(images)[-len(self.heads) :]
        size = images.shape[2] // self.stride, images.shape[3] // self.stride
        parts = [F.elu(head(level)) for head, level in zip(self.heads, levels, strict=True)]
        return F.elu(self.mix(torch.cat([to_size(part, size) for part in parts], dim=1)))

    def parameter_groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        """Return (factor of the learning rate, parameters): 1 for the backbone, 10 for the heads."""
        heads = [*self.heads.parameters(), *self.mix.parameters()]
        return [(1.0, [each for each in self.backbone.parameters() if each.requires_grad]), (10.0, heads)]
