"""What Grad-CAM and its kin share: activations of chosen layers, and the gradient of each class score there.

One forward pass, and one backward pass for the k-th class of every image together: images do not influence each
other in evaluation mode, so the gradient of the sum is the gradient of each. Several layers take part in the same
two passes. Below the first of them nothing is recorded, and no parameter gets a gradient.

The gradient of an average pool over Z positions carries a factor 1/Z. Maps are multiplied by Z, a constant that any
normalization removes: so maps of several input sizes can be summed, and Grad-CAM before a pooled linear head is CAM.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wsol.cams._layers import LayerMethod, check_scores, fuse, read, unseen
from wsol.cams.base import ClassChoice, RawMaps, choose
from wsol.models.classifier import Classifier
from wsol.models.taps import tap


@dataclass(frozen=True, kw_only=True)
class GradientMethod(LayerMethod):
    """Maps from the activations of chosen layers and the gradients of class scores there."""

    @abstractmethod
    def weigh(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Return maps (B, h, w) from activations and gradients, both float32 (B, D, h, w)."""

    def check(self, classifier: Classifier) -> None:
        """Refuse models without class scores or target layer."""
        check_scores(classifier)
        super().check(classifier)

    def maps(self, classifier: Classifier, images: Tensor, class_ids: ClassChoice) -> RawMaps:
        """Make the maps of a batch."""
        names, size = self.layers(classifier), images.shape[-2:]
        with tap(classifier.module, activations=names, gradients=True) as tapped:
            scores = classifier.module(images.clone() if images.is_inference() else images.detach())
            activations, logits = read(tapped, names, classifier, images), scores.detach().float()
            ids = choose(class_ids, logits)
            grids = [classifier.to_grid(item.detach(), *size).float() for item in activations]
            most = max((len(row) for row in ids), default=0)
            maps = [grid.new_zeros(len(ids), most, *grid.shape[2:]) for grid in grids]
            for k, gradients in enumerate(class_gradients(scores, ids, activations)):
                for name, layer, grid, gradient in zip(names, maps, grids, gradients, strict=True):
                    if gradient is None:
                        raise unseen(name, classifier)
                    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
                        layer[:, k] = self.weigh(grid, classifier.to_grid(gradient, *size).float())
        for layer in maps:
            layer *= layer.shape[2] * layer.shape[3]
        values = tuple(fuse([layer[at, : len(row)] for layer in maps]) for at, row in enumerate(ids))
        return RawMaps(values, ids, logits)


def class_gradients(
    scores: Tensor, class_ids: Sequence[Sequence[int]], inputs: Sequence[Tensor]
) -> Iterator[tuple[Tensor | None, ...]]:
    """Derive the scores of the k-th class of every image, one backward pass a k.

    Args:
        scores: (B, C) with its graph, which the last pass frees.
        class_ids: The classes of each image; an image with fewer than others gets zeros in the last passes.
        inputs: Tensors to derive for.

    Yields:
        The gradient for each input, in its shape; None where the scores do not depend on it.
    """
    most = max((len(row) for row in class_ids), default=0)
    for k in range(most):
        rows = [at for at, row in enumerate(class_ids) if k < len(row)]
        score = scores[rows, [class_ids[at][k] for at in rows]].sum()
        if not score.requires_grad:
            yield (None,) * len(inputs)
        else:
            yield torch.autograd.grad(score, inputs, retain_graph=k + 1 < most, allow_unused=True)
