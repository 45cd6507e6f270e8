"""DeepLabV2: dilated features and four parallel dilated classifiers that are summed (ASPP).

Chen, Papandreou, Kokkinos, Murphy, Yuille, "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous
Convolution, and Fully Connected CRFs", TPAMI 2018, https://arxiv.org/abs/1606.00915. The network that most papers on
image-level labels train on their pseudo-masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_RATES = (6, 12, 18, 24)


class Last(nn.Module):
    """The decoder that is none: takes the last feature map."""

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the last of the feature maps."""
        return features[-1]


class ASPP(nn.Module):
    """The sum of four 3x3 convolutions of different dilations, upsampled to the input.

    Args:
        width: Channels of the features.
        channels: Classes, background included.
        stride: Pixels between two grid positions.
    """

    def __init__(self, width: int, channels: int, stride: int) -> None:
        super().__init__()
        stages = [nn.Conv2d(width, channels, 3, padding=rate, dilation=rate) for rate in _RATES]
        for stage in stages:
            nn.init.normal_(stage.weight, std=0.01)
            if stage.bias is not None:
                nn.init.zeros_(stage.bias)
        self.stages, self.stride = nn.ModuleList(stages), stride

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, C, h, w) of features (B, D, h / stride, w / stride)."""
        logits = torch.stack([stage(features) for stage in self.stages]).sum(0)
        return F.interpolate(logits, scale_factor=self.stride, mode="bilinear", align_corners=False)


class DeepLabV2(nn.Module):
    """An encoder of segmentation_models_pytorch at stride 8 with ASPP.

    Args:
        encoder: Gives a list of feature maps, of which the last counts.
        channels: Classes, background included.
    """

    def __init__(self, encoder: Any, channels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = Last()
        self.segmentation_head = ASPP(int(encoder.out_channels[-1]), channels, int(encoder.output_stride))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C, h, w) of images (B, 3, h, w)."""
        logits: Tensor = self.segmentation_head(self.decoder(self.encoder(images)))
        return logits
