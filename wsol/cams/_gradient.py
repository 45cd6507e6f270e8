"""What Grad-CAM and its kin share: activations of one layer, and the gradient of each class score there.

One forward pass, and one backward pass for the k-th class of every image together: images do not influence each
other in evaluation mode, so the gradient of the sum is the gradient of each. Below the layer nothing is recorded,
and no parameter gets a gradient.

The gradient of an average pool over Z positions carries a factor 1/Z. Maps are multiplied by Z, a constant that any
normalization removes: so maps of several input sizes can be summed, and Grad-CAM before a pooled linear head is CAM.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from wsol.cams.base import ClassChoice, MapMethod, RawMaps, choose
from wsol.errors import ModelError
from wsol.models.classifier import Classifier
from wsol.models.taps import find, tap


@dataclass(frozen=True, kw_only=True)
class GradientMethod(MapMethod):
    """Maps from the activations of one layer and the gradients of class scores there."""

    layer: str | None = None
    """Dotted name of the layer to look at; default: the last features (CNN), input of the last attention (ViT)."""

    @abstractmethod
    def weigh(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Return maps (B, h, w) from activations and gradients, both float32 (B, D, h, w)."""

    def check(self, classifier: Classifier) -> None:
        """Refuse models without class scores or target layer."""
        where = classifier.name
        if not classifier.num_classes:
            raise ModelError("no class scores to derive", where=where, hint="give weights with a head, or num_classes")
        if self.layer is not None:
            find(classifier.module, self.layer)
        elif classifier.layer is None:
            raise ModelError("cannot tell the target layer of this model", where=where, hint="name it: layer=...")

    def maps(self, classifier: Classifier, images: Tensor, class_ids: ClassChoice) -> RawMaps:
        """Make the maps of a batch."""
        layer = str(self.layer or classifier.layer)
        size = images.shape[-2:]
        with tap(classifier.module, activations=(layer,), gradients=True) as tapped:
            scores = classifier.module(images.clone() if images.is_inference() else images.detach())
            if layer not in tapped.activations or not scores.requires_grad:
                raise ModelError(f"the class scores do not depend on layer '{layer}'", where=classifier.name)
            activation, logits = tapped.activations[layer], scores.detach().float()
            ids = choose(class_ids, logits)
            grid = classifier.to_grid(activation.detach(), *size).float()
            most = max((len(row) for row in ids), default=0)
            maps = grid.new_zeros(len(ids), most, *grid.shape[2:])
            for k in range(most):
                rows = [at for at, row in enumerate(ids) if k < len(row)]
                score = scores[rows, [ids[at][k] for at in rows]].sum()
                (gradient,) = torch.autograd.grad(score, activation, retain_graph=k + 1 < most)
                with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
                    maps[:, k] = self.weigh(grid, classifier.to_grid(gradient, *size).float())
        maps *= grid.shape[2] * grid.shape[3]
        return RawMaps(tuple(rows[: len(row)] for rows, row in zip(maps, ids, strict=True)), ids, logits)
