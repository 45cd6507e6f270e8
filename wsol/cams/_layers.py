"""What methods that look at chosen layers share: naming the layers, reading them, and fusing their maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from wsol.cams.base import MapMethod
from wsol.errors import ConfigError, ModelError
from wsol.models.classifier import Classifier
from wsol.models.taps import Tapped, find


@dataclass(frozen=True, kw_only=True)
class LayerMethod(MapMethod):
    """Maps from the activations of one layer, or of several whose maps are fused."""

    layer: str | tuple[str, ...] | None = None
    """Layer to look at, or several to fuse; default: the last features (CNN), input of the last attention (ViT)."""

    def check(self, classifier: Classifier) -> None:
        """Refuse models without target layer, and layers that are not there."""
        for name in self.layers(classifier):
            find(classifier.module, name)

    def layers(self, classifier: Classifier) -> tuple[str, ...]:
        """Return the dotted names of the layers to look at.

        Raises:
            ConfigError: When the option names none.
            ModelError: When none is named and the model has no default.
        """
        if self.layer == () or self.layer == "":
            raise ConfigError("no layer to look at", where="layer", hint="name one, or leave the option out")
        if isinstance(self.layer, tuple):
            return self.layer
        name = self.layer or classifier.layer
        if name is None:
            hint = "name it: layer=..."
            raise ModelError("cannot tell the target layer of this model", where=classifier.name, hint=hint)
        return (name,)


def check_scores(classifier: Classifier) -> None:
    """Refuse models without class scores.

    Raises:
        ModelError: When the model has no head.
    """
    if not classifier.num_classes:
        hint = "give weights with a head, or num_classes"
        raise ModelError("no class scores to derive maps from", where=classifier.name, hint=hint)


def read(tapped: Tapped, names: Sequence[str], classifier: Classifier, images: Tensor) -> list[Tensor]:
    """Return the activations of some layers, as the layers gave them.

    Raises:
        ModelError: When the forward pass did not run a layer, or the layer works on parts of the images.
    """
    for name in names:
        if name not in tapped.activations:
            raise unseen(name, classifier)
        count = len(tapped.activations[name])
        if count != len(images):
            what = f"layer '{name}' gives {count} activations for {len(images)} images"
            raise ModelError(what, where=classifier.name, hint="choose another layer")
    return [tapped.activations[name] for name in names]


def unseen(name: str, classifier: Classifier) -> ModelError:
    """Return the error that says that a layer has no part in the class scores."""
    return ModelError(f"the class scores do not depend on layer '{name}'", where=classifier.name)


def fuse(maps: Sequence[Tensor]) -> Tensor:
    """Fuse the maps that several layers give for one image.

    One layer: its maps as they are. Several: each rectified, scaled to [0, 1], enlarged to the finest grid (bilinear),
    then their mean, as in pytorch-grad-cam; torchcam takes the element-wise maximum instead, of which one noisy layer
    decides alone.

    Args:
        maps: (K, h, w) of each layer.

    Returns:
        (K, H, W) on the largest of the grids.
    """
    if len(maps) == 1:
        return maps[0]
    size = max((item.shape[-2:] for item in maps), key=lambda shape: shape[0] * shape[1])
    total = maps[0].new_zeros(len(maps[0]), *size)
    if not len(total):
        return total
    for item in maps:
        positive = item.relu()
        lowest, highest = positive.amin((1, 2), keepdim=True), positive.amax((1, 2), keepdim=True)
        span = highest - lowest
        scaled = (positive - lowest) / torch.where(span > 0, span, 1.0)
        total += F.interpolate(scaled[None], size=size, mode="bilinear", align_corners=False)[0]
    return total / len(maps)
