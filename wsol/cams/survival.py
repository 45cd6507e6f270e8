"""Survival map of DynamicViT: how long the network keeps each patch.

Rao, Zhao, Liu, Lu, Zhou, Hsieh, "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification", NeurIPS
2021, https://arxiv.org/abs/2106.02034. The number of stages that keep a patch, plus its probability of being kept in
the last stage that saw it (ours, to settle ties). Knows no classes: every class gets the same map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsol.cams import CAMS
from wsol.cams.base import ClassChoice, MapMethod, RawMaps, choose, true_logits
from wsol.errors import ModelError
from wsol.models.classifier import Classifier
from wsol.models.dynamic_tokens import DynamicTokens


@CAMS.register("survival")
@dataclass(frozen=True, kw_only=True)
class Survival(MapMethod):
    """How long a network that drops patches keeps each of them."""

    def check(self, classifier: Classifier) -> None:
        """Refuse models that drop no patches."""
        if not isinstance(classifier.module, DynamicTokens):
            hint = "train a model dynamic_tokens:NAME; attention works with any vision transformer"
            raise ModelError("drops no patches", where=classifier.name, hint=hint)

    def maps(self, classifier: Classifier, images: Tensor, class_ids: ClassChoice) -> RawMaps:
        """Make the maps of a batch."""
        with torch.no_grad():
            seen = classifier.module.run(images)
            logits = true_logits(classifier, classifier.module.forward_head(seen.tokens))
            ids = choose(class_ids, logits)
            given = seen.survival().reshape(len(images), *classifier.grid(*images.shape[-2:]))
        return RawMaps(tuple(given[at].expand(len(row), -1, -1).clone() for at, row in enumerate(ids)), ids, logits)
