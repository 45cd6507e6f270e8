"""IRNet: a class boundary map and a displacement field that leads each pixel to the centroid of its instance.

Ahn, Cho, Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019,
https://arxiv.org/abs/1904.05044. Both branches read every level of a fixed backbone through 1x1 convolutions and group
norms on a grid of stride 4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsol.models.features import Backbone, to_size

_STRIDE = 4
_EDGE, _WIDE = 32, 256
_MOST_GROUPS, _LEAST_CHANNELS = 16, 8


class MeanShift(nn.BatchNorm2d):
    """Subtracts the mean of the displacements seen in training, so that the field of an average pixel is 0."""

    def __init__(self) -> None:
        super().__init__(2, affine=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Return the input (B, 2, h, w) in training, and the input minus the running mean otherwise."""
        if self.training:
            super().forward(input.detach())
            return input
        mean: Tensor = self.get_buffer("running_mean")
        return input - mean.view(1, 2, 1, 1)


class IRNet(nn.Module):
    """The branches of IRNet on a timm backbone.

    With resnet50 the layers are the paper's: 5 x 32 channels for the boundary; 64, 128 and 3 x 256 channels for the
    displacements, the levels coarser than the grid joined first. Levels finer than the grid are max-pooled (as the
    stem of a ResNet does). The paper's code sets the stride of the last stage to 1 without dilation; here
    `output_stride=16` of the backbone dilates.

    Args:
        backbone: Any number of levels.
        frozen: Train the branches only, as the paper does.

    Attributes:
        stride: Pixels between two positions of the grid.
    """

    def __init__(self, backbone: Backbone, *, frozen: bool = True) -> None:
        super().__init__()
        self.backbone, self.frozen = backbone, frozen
        if frozen:
            backbone.requires_grad_(False)
        self.stride: int = max(_STRIDE, min(backbone.strides))
        widths = [64 if stride < _STRIDE else 128 if stride <= self.stride else _WIDE for stride in backbone.strides]
        self._fine = [at for at, stride in enumerate(backbone.strides) if stride <= self.stride]
        self._coarse = [at for at, stride in enumerate(backbone.strides) if stride > self.stride]
        edge = [_layer(have, _EDGE) for have in backbone.channels]
        field = [_layer(have, want) for have, want in zip(backbone.channels, widths, strict=True)]
        self.edge, self.field = nn.ModuleList(edge), nn.ModuleList(field)
        self.edge_out = nn.Conv2d(_EDGE * len(edge), 1, 1)
        joined = sum(widths[at] for at in self._fine)
        if self._coarse:
            self.field_coarse = _layer(_WIDE * len(self._coarse), _WIDE)
            joined += _WIDE
        last = nn.Conv2d(_WIDE, 2, 1, bias=False)
        self.field_out = nn.Sequential(_layer(joined, _WIDE), nn.ReLU(), last, MeanShift())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the boundary logits (B, 1, h, w) and the displacements (B, 2, h, w), (dy, dx) in grid positions.

        Args:
            images: Normalized float (B, 3, H, W), sides multiples of `backbone.multiple`; h = H / stride.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            levels = self.backbone(images)
        size = images.shape[2] // self.stride, images.shape[3] // self.stride
        levels = [_pool_to(level, size) for level in levels]
        edges = [F.relu(to_size(layer(level), size)) for layer, level in zip(self.edge, levels, strict=True)]
        return self.edge_out(torch.cat(edges, dim=1)), self._displacements(levels, size)

    def _displacements(self, levels: list[Tensor], size: tuple[int, int]) -> Tensor:
        parts = [F.relu(self.field[at](levels[at])) for at in self._fine]
        if self._coarse:
            middle = max((levels[at] for at in self._coarse), key=lambda level: level.shape[2] * level.shape[3])
            target = middle.shape[2], middle.shape[3]
            coarse = [F.relu(to_size(self.field[at](levels[at]), target)) for at in self._coarse]
            parts.append(F.relu(to_size(self.field_coarse(torch.cat(coarse, dim=1)), size)))
        moved: Tensor = self.field_out(torch.cat(parts, dim=1))
        return moved

    def parameter_groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        """Return (factor of the learning rate, parameters): 1 for the boundary and the backbone, 10 for the field."""
        own = [each for each in self.backbone.parameters() if each.requires_grad]
        field = [each for name, each in self.named_parameters() if name.startswith("field")]
        return [(1.0, [*own, *self.edge.parameters(), *self.edge_out.parameters()]), (10.0, field)]


def _layer(have: int, want: int) -> nn.Sequential:
    norm = nn.GroupNorm(min(_MOST_GROUPS, want // _LEAST_CHANNELS), want)
    return nn.Sequential(nn.Conv2d(have, want, 1, bias=False), norm)


def _pool_to(level: Tensor, size: tuple[int, int]) -> Tensor:
    while level.shape[2] > size[0] or level.shape[3] > size[1]:
        level = F.max_pool2d(level, 3, stride=2, padding=1)
    return level
