"""A frozen copy of a model, to learn from."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """A copy of a timm model that wants no gradient and stays in evaluation mode.

    Args:
        module: The model; it is copied.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.copy: Any = copy.deepcopy(module).requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return final features and logits of images (B, 3, H, W)."""
        features = self.copy.forward_features(x)
        return features, self.copy.forward_head(features)
