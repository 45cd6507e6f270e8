"""Attention-gradient rollout: attention weighed by the gradient of the class score, multiplied up over the blocks.

Chefer, Gur, Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers",
ICCV 2021, https://arxiv.org/abs/2103.15679, equations 5 and 6 for self-attention: A' = mean over heads of
relu(dy_c/dA * A), R <- R + A' R from R = I. That is the product over the blocks of I + A', the rollout of "Transformer
Interpretability Beyond Attention Visualization", CVPR 2021, https://arxiv.org/abs/2012.09838, with the attention itself
in place of its relevance (LRP needs rules for every layer of a model). Rows are not normalized, as in both. Only the
row of the output token is needed, so vectors are multiplied instead of matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsol.cams import CAMS
from wsol.cams._attention import AttentionGradientMethod, Seen, require_square
from wsol.cams._gradient import class_gradients


@CAMS.register("chefer")
@dataclass(frozen=True, kw_only=True)
class Chefer(AttentionGradientMethod):
    """Attention weighed by the gradient of the class score, multiplied up over the blocks."""

    def received(self, seen: Seen, class_ids: Sequence[Sequence[int]]) -> Tensor:
        """Return what each token gives to the output tokens (B, K, N)."""
        require_square(seen.layers)
        start = self.start(seen.classifier, seen.layers[-1]).float()
        most = max((len(row) for row in class_ids), default=0)
        received = start.expand(len(seen.scores), most, -1).clone()
        for k, gradients in enumerate(class_gradients(seen.scores, class_ids, seen.layers)):
            given = received[:, k]
            with torch.no_grad(), torch.autocast(start.device.type, enabled=False):
                for layer, gradient in zip(reversed(seen.layers), reversed(gradients), strict=True):
                    if gradient is not None:
                        weighed = (gradient.float() * layer.float()).relu_().mean(1)
                        given += torch.einsum("br,brn->bn", given, weighed)
        return received
