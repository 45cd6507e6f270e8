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
from wsol.cams._attention import check_start_layer, patch_map, read_layers, require_attention, require_square
from wsol.cams._gradient import class_gradients
from wsol.cams._layers import check_scores
from wsol.cams.base import ClassChoice, MapMethod, RawMaps, choose
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
        require_attention(classifier)
        check_scores(classifier)
        if self.start_layer is not None:
            check_start_layer(classifier, self.start_layer)

    def maps(self, classifier: Classifier, images: Tensor, class_ids: ClassChoice) -> RawMaps:
        """Make the maps of a batch."""
        start = len(classifier.attention) // 2 if self.start_layer is None else self.start_layer
        names, read = classifier.attention[start:], classifier.output_tokens
        with tap(classifier.module, attention=names, gradients=True) as tapped:
            scores = classifier.module(images.clone() if images.is_inference() else images.detach())
            logits = scores.detach().float()
            ids = choose(class_ids, logits)
            layers = read_layers(classifier, tapped, names, images)
            require_square(layers)
            given = logits.new_zeros(len(ids), max((len(row) for row in ids), default=0), layers[0].shape[-1])
            for k, gradients in enumerate(class_gradients(scores, ids, layers)):
                pairs = zip(layers, gradients, strict=True)
                with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
                    coupled = gradient_attention(
                        (layer[:, :, read].float(), gradient[:, :, read].float())
                        for layer, gradient in pairs
                        if gradient is not None
                    )
                    given[:, k] = coupled.mean(1)
            maps = patch_map(classifier, given, images)
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
