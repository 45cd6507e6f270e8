"""GETAM: attention of the later blocks, weighted twice by the gradient of the class score.

Sun et al., "GETAM: Gradient-weighted Element-wise Transformer Attention Map for Weakly-supervised Semantic
segmentation", arXiv 2021, https://arxiv.org/abs/2112.02841. With A the attention of a block after softmax, G the
gradient of the class score there and means over the heads, the map is the sum over the blocks of
mean(relu(G * A)) * mean(relu(G)), element by element, in the row of the class token and the columns of the patches.

The published code enlarges the maps with corners aligned; here they stay on the grid of the patches and are enlarged
like those of every other method, with pixel centres aligned.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from wsol.cams import CAMS
from wsol.cams._gradient import class_gradients
from wsol.cams._layers import check_scores
from wsol.cams.base import ClassChoice, MapMethod, RawMaps, choose
from wsol.errors import ConfigError, ModelError
from wsol.models.classifier import Classifier
from wsol.models.taps import tap


@CAMS.register("getam")
@dataclass(frozen=True, kw_only=True)
class GETAM(MapMethod):
    """Attention of the later blocks, weighted twice by the gradient of the class score.

    The k-th classes of all images of a batch share one backward pass, which ends at the first block that takes part.
    For models that pool the patches, the mean over the rows of the patches stands for the row of the class token.
    """

    start_layer: int | None = None
    """First block that takes part; default: half of the depth, 6 of 12."""

    def check(self, classifier: Classifier) -> None:
        """Refuse models without attention over all tokens or without class scores, and blocks that are not there."""
        count = len(classifier.attention)
        if not count:
            raise ModelError(
                "needs attention between all patches, as in a plain vision transformer",
                where=classifier.name,
                hint="cam, gradcam and layercam work with this model",
            )
        check_scores(classifier)
        if self.start_layer is not None and not 0 <= self.start_layer < count:
            raise ConfigError(f"start_layer must be in [0, {count - 1}], got {self.start_layer}", where="getam")

    def maps(self, classifier: Classifier, images: Tensor, class_ids: ClassChoice) -> RawMaps:
        """Make the maps of a batch."""
        start = len(classifier.attention) // 2 if self.start_layer is None else self.start_layer
        names, prefix = classifier.attention[start:], classifier.prefix_tokens
        rows, columns = classifier.grid(*images.shape[-2:])
        tokens = prefix + rows * columns
        read = classifier.output_tokens
        with tap(classifier.module, attention=names, gradients=True) as tapped:
            scores = classifier.module(images.clone() if images.is_inference() else images.detach())
            logits = scores.detach().float()
            ids = choose(class_ids, logits)
            layers = [tapped.attention[name] for name in names]
            if any(layer.shape[2:] != (tokens, tokens) for layer in layers):
                raise ModelError(
                    "needs blocks in which every token attends to every token",
                    where=classifier.name,
                    hint="use gradcam",
                )
            maps = logits.new_zeros(len(ids), max((len(row) for row in ids), default=0), rows, columns)
            for k, gradients in enumerate(class_gradients(scores, ids, layers)):
                pairs = zip(layers, gradients, strict=True)
                with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
                    coupled = gradient_attention(
                        (layer[:, :, read].float(), gradient[:, :, read].float())
                        for layer, gradient in pairs
                        if gradient is not None
                    )
                    maps[:, k] = coupled[:, :, prefix:].mean(1).reshape(-1, rows, columns)
        return RawMaps(tuple(maps[at, : len(row)] for at, row in enumerate(ids)), ids, logits)


def gradient_attention(layers: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Couple attention and gradient, element by element, and add up the blocks.

    Args:
        layers: Attention (B, heads, rows, N) after softmax and the gradient of the class score for it, of each block
            that takes part.

    Returns:
        (B, rows, N): the sum of mean(relu(G * A)) * mean(relu(G)), means over the heads; never negative.

    Raises:
        ValueError: When there is no block.
    """
    total: Tensor | None = None
    for attention, gradient in layers:
        positive = gradient.relu()
        # Attention is positive, so relu(G * A) is relu(G) * A.
        coupled = (positive * attention).mean(1) * positive.mean(1)
        total = coupled if total is None else total + coupled
    if total is None:
        raise ValueError("no block takes part")
    return total
