"""Head masks: the patches that together hold a share of a head's attention in the last block.

Naseer, Ranasinghe, Khan, Hayat, Khan, Yang, "Intriguing Properties of Vision Transformers", NeurIPS 2021,
https://arxiv.org/abs/2105.10497, after the procedure of DINO, https://arxiv.org/abs/2104.14294. The row of the class or
distillation ("shape") token over the patches, divided by its sum; the mask of a head is the strongest patches, as few
as hold the `mass`. The map is the mask of one head, or the share of the heads that have a patch in their mask. Knows no
classes: every class gets the same map. The paper scores the best head of each image, with the ground truth at hand
(`wsol.eval.attention_jaccard`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsol.cams import CAMS
from wsol.cams._attention import TokenMethod, patch_map, read_layers
from wsol.cams.base import ClassChoice, RawMaps, choose, true_logits
from wsol.errors import ConfigError
from wsol.models.classifier import Classifier
from wsol.models.taps import find, tap


@CAMS.register("head_masks")
@dataclass(frozen=True, kw_only=True)
class HeadMasks(TokenMethod):
    """The patches that together hold a share of a head's attention in the last block."""

    mass: float = 0.9
    """Share of a head's attention that its mask holds, in (0, 1]."""
    head: int | None = None
    """Head to read; default: the mean over the masks of all."""

    def check(self, classifier: Classifier) -> None:
        """Refuse models without attention over all tokens, and options out of range."""
        super().check(classifier)
        if not 0 < self.mass <= 1:
            raise ConfigError(f"mass must be in (0, 1], got {self.mass}", where="head_masks")
        count = int(getattr(find(classifier.module, classifier.attention[-1]), "num_heads", 1))
        if self.head is not None and not 0 <= self.head < count:
            raise ConfigError(f"head must be in [0, {count - 1}], got {self.head}", where="head_masks")

    def maps(self, classifier: Classifier, images: Tensor, class_ids: ClassChoice) -> RawMaps:
        """Make the maps of a batch."""
        last = classifier.attention[-1:]
        with torch.inference_mode(), tap(classifier.module, attention=last) as tapped:
            scores = classifier.module(images)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            logits = true_logits(classifier, scores).clone()
            ids = choose(class_ids, logits)
            (layer,) = (layer.float() for layer in read_layers(classifier, tapped, last, images))
            looked = torch.einsum("r,bhrn->bhn", self.start(classifier, layer), layer)
            masks = mass_mask(patch_map(classifier, looked, images), self.mass).float()
            shared = masks.mean(1) if self.head is None else masks[:, self.head]
        values = tuple(shared[at].expand(len(row), -1, -1).clone() for at, row in enumerate(ids))
        return RawMaps(values, ids, logits)


def mass_mask(attention: Tensor, mass: float) -> Tensor:
    """Return the strongest patches that hold a share of the attention.

    Args:
        attention: Float (..., rows, columns), not negative.
        mass: Share in (0, 1].

    Returns:
        Bool (..., rows, columns): in rising order, the patches where the running sum of the shares passes 1 - mass.
    """
    flat = attention.flatten(-2)
    weights, order = (flat / flat.sum(-1, keepdim=True)).sort(dim=-1, stable=True)
    strong = weights.cumsum(-1) > 1 - mass
    return torch.zeros_like(strong).scatter(-1, order, strong).view(attention.shape)
