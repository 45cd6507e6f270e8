"""LeGrad: where more attention of each block would raise the class score read off that very block.

Bousselham, Boggust, Chaybouti, Strobelt, Kuehne, "LeGrad: An Explainability Method for Vision Transformers via Feature
Formation Sensitivity", ICCV 2025, https://arxiv.org/abs/2404.03214. The score of block l is what the model's own norm,
pooling and head make of its output tokens; the map is the mean over blocks of E_l, the mean over heads and over the
attending tokens of relu(d score_l / d A_l). The last min-max is left to the normalization of the maps (give
`--normalize minmax`).

Written for timm classifiers and checked against a direct evaluation of these equations, not against the output of the
authors' code. That code works on open_clip models: there it pools CLIP by the mean over all tokens, reads the
pooler's attention of SigLIP and CoCa, and starts at the last block but one; `start_layer` does so here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wsol.cams import CAMS
from wsol.cams._attention import AttentionGradientMethod, Seen
from wsol.cams._gradient import class_gradients
from wsol.errors import ModelError
from wsol.models.classifier import Classifier


@CAMS.register("legrad")
@dataclass(frozen=True, kw_only=True)
class LeGrad(AttentionGradientMethod):
    """Where more attention of each block would raise the class score read off that very block."""

    def check(self, classifier: Classifier) -> None:
        """Refuse models that are not a row of blocks, a norm and a head."""
        super().check(classifier)
        blocks, norm = (getattr(classifier.module, name, None) for name in ("blocks", "norm"))
        plain = isinstance(blocks, nn.Sequential | nn.ModuleList) and isinstance(norm, nn.Module)
        if not plain or any(not name.startswith("blocks.") for name in classifier.attention):
            hint = "chefer works with this model"
            raise ModelError("needs a row of blocks, a norm and a head", where=classifier.name, hint=hint)

    def activations(self, classifier: Classifier) -> tuple[str, ...]:
        """Return the names of the blocks."""
        names = (_block(name) for name in classifier.attention[self.start_layer :])
        return tuple(dict.fromkeys(names))

    def received(self, seen: Seen, class_ids: Sequence[Sequence[int]]) -> Tensor:
        """Return what each token gives to the scores of the blocks (B, K, N)."""
        module, names = seen.classifier.module, seen.classifier.attention[self.start_layer :]
        most = max((len(row) for row in class_ids), default=0)
        total = torch.zeros(len(seen.scores), most, seen.layers[-1].shape[-1], device=seen.scores.device)
        for name, layer in zip(names, seen.layers, strict=True):
            scores = module.forward_head(module.norm(seen.activations[_block(name)]))
            for k, (gradient,) in enumerate(class_gradients(scores, class_ids, [layer])):
                if gradient is not None:
                    total[:, k] += gradient.float().relu_().mean((1, 2))
        return total / len(names)


def _block(attention: str) -> str:
    return ".".join(attention.split(".")[:2])
