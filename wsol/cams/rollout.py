"""Attention rollout: attention of all blocks multiplied up, with the residual connections.

Abnar, Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, https://arxiv.org/abs/2005.00928. Section 3:
A' = 0.5 A + 0.5 I with rows that sum to 1, rollout = A'_L ... A'_1, heads fused by their mean. Only the row of the
class token is needed (for models that pool, the mean over the rows of the patches), so vectors are multiplied instead
of matrices. Knows no classes: every class gets the same map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsol.cams import CAMS
from wsol.cams._attention import AttentionMethod, check_start_layer, require_square
from wsol.errors import ConfigError
from wsol.models.classifier import Classifier


@CAMS.register("rollout")
@dataclass(frozen=True, kw_only=True)
class Rollout(AttentionMethod):
    """Attention of all blocks multiplied up, with the residual connections."""

    discard_ratio: float = 0.0
    """Share of the weakest weights of each block that are set to 0 first, in [0, 1)."""
    start_layer: int = 0
    """First block that takes part."""

    def check(self, classifier: Classifier) -> None:
        """Refuse models without attention over all tokens, and options out of range."""
        super().check(classifier)
        if not 0 <= self.discard_ratio < 1:
            raise ConfigError(f"discard_ratio must be in [0, 1), got {self.discard_ratio}", where="rollout")
        check_start_layer(classifier, self.start_layer)

    def blocks(self, classifier: Classifier) -> tuple[str, ...]:
        """Return the attention modules from the first block that takes part."""
        return classifier.attention[self.start_layer :]

    def received(self, layers: Sequence[Tensor], start: Tensor) -> Tensor:
        """Return what each token gives to the output tokens (B, N)."""
        require_square(layers)
        given = start.expand(len(layers[0]), -1)
        for layer in reversed(layers):
            kept = self._discard(layer)
            # The row vector times (A + I) with rows divided by their sums: divide the vector instead.
            scaled = given / (kept.sum(2) + 1)
            given = torch.einsum("br,brn->bn", scaled, kept) + scaled
        return given

    def _discard(self, layer: Tensor) -> Tensor:
        flat = layer.flatten(1)
        weakest = int(flat.shape[1] * self.discard_ratio)
        if not weakest:
            return layer
        limit = flat.kthvalue(weakest, dim=1).values[:, None, None]
        return torch.where(layer <= limit, 0.0, layer)
