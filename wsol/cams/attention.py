"""Last-block attention: what the class token looks at in the last block of a vision transformer.

Caron, Touvron, Misra, Jegou, Mairal, Bojanowski, Joulin, "Emerging Properties in Self-Supervised Vision Transformers",
ICCV 2021, https://arxiv.org/abs/2104.14294. The softmax weights of the last block, heads fused, row of the class
token; the mean over the rows of all patches for models that pool. Knows no classes: every class gets the same map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsol.cams import CAMS
from wsol.cams._attention import AttentionMethod
from wsol.models.classifier import Classifier


@CAMS.register("attention")
@dataclass(frozen=True, kw_only=True)
class Attention(AttentionMethod):
    """What the class token looks at in the last block of a vision transformer."""

    def blocks(self, classifier: Classifier) -> tuple[str, ...]:
        """Return the last attention module."""
        return classifier.attention[-1:]

    def received(self, layers: Sequence[Tensor], start: Tensor) -> Tensor:
        """Return what each token gives to the output tokens (B, N)."""
        return torch.einsum("r,brn->bn", start, layers[-1])
