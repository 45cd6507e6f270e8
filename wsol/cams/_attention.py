"""What the attention methods share: which models they take, fusing heads, and reading a map off the tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wsol.cams.base import ClassChoice, MapMethod, RawMaps, choose, true_logits
from wsol.errors import ModelError
from wsol.models.classifier import Classifier
from wsol.models.taps import tap

Fusion = Literal["mean", "max", "min"]


@dataclass(frozen=True, kw_only=True)
class AttentionMethod(MapMethod):
    """Maps from attention weights: the same map for every class.

    The map says how much each patch gives to what the head reads: the class token, or the mean over the patches for
    models that pool (then it is the attention that each patch receives).
    """

    head_fusion: Fusion = "mean"
    """How the heads of a block are put together."""

    def check(self, classifier: Classifier) -> None:
        """Refuse models without attention over all tokens."""
        if not classifier.attention:
            raise ModelError(
                "needs attention between all patches, as in a plain vision transformer",
                where=classifier.name,
                hint="cam, gradcam and layercam work with this model",
            )

    @abstractmethod
    def blocks(self, classifier: Classifier) -> tuple[str, ...]:
        """Return the names of the attention modules to read, in order."""

    @abstractmethod
    def received(self, layers: Sequence[Tensor], start: Tensor) -> Tensor:
        """Return what each token gives to the output.

        Args:
            layers: Fused attention (B, rows, N) of each block in order.
            start: (rows,) weights of the output tokens, with sum 1.

        Returns:
            (B, N).
        """

    def maps(self, classifier: Classifier, images: Tensor, class_ids: ClassChoice) -> RawMaps:
        """Make the maps of a batch."""
        names = self.blocks(classifier)
        rows, columns = classifier.grid(*images.shape[-2:])
        tokens, prefix = classifier.prefix_tokens + rows * columns, classifier.prefix_tokens
        with torch.inference_mode(), tap(classifier.module, attention=names, reduce=self._fuse) as tapped:
            scores = classifier.module(images)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            logits = true_logits(classifier, scores).clone()
            ids = choose(class_ids, logits)
            layers = [tapped.attention[name].float() for name in names]
            if any(layer.shape[-1] != tokens for layer in layers):
                raise ModelError("attention is not between the patches of the grid", where=classifier.name)
            start = layers[-1].new_zeros(layers[-1].shape[1])
            # A model that pools weighs all patches evenly; else the class token stands first.
            start[slice(0, 1) if classifier.class_token else slice(prefix, None)] = 1
            given = self.received(layers, start / start.sum())[:, prefix:].reshape(-1, rows, columns)
        values = tuple(given[at].expand(len(row), -1, -1).clone() for at, row in enumerate(ids))
        return RawMaps(values, ids, logits)

    def _fuse(self, weights: Tensor) -> Tensor:
        if self.head_fusion == "mean":
            return weights.mean(1)
        return weights.amax(1) if self.head_fusion == "max" else weights.amin(1)
