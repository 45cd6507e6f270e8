"""The network of AutoMix that draws masks, and the moving average of the classifier that it looks through."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wsol.errors import ModelError
from wsol.models.classifier import Classifier
from wsol.models.taps import tap

Variant = Literal["automix", "samix"]


class MixBlock(nn.Module):
    """Masks of the partner from the features of both images.

    Args:
        channels: D of the features.
        variant: "automix": lambda is one more channel, the value comes from the partner's features, linearly; "samix":
            features are scaled by 1 + lambda, the value comes from both, through a hidden layer.
    """

    def __init__(self, channels: int, *, variant: Variant = "automix") -> None:
        super().__init__()
        self.variant = variant
        hidden, extra = max(1, channels // 2), int(variant == "automix")
        self.query = nn.Conv2d(channels + extra, hidden, 1)
        self.value: nn.Module = nn.Conv2d(channels + extra, 1, 1)
        if variant == "samix":
            self.value = nn.Sequential(
                nn.Conv2d(2 * channels, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU(), nn.Conv2d(hidden, 1, 1)
            )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)

    def forward(self, own: Tensor, partner: Tensor, lam: float) -> Tensor:
        """Return the partner's share (B, 1, h, w) in (0, 1).

        Args:
            own: (B, D, h, w), float32.
            partner: (B, D, h, w), features of the partners.
            lam: Nominal share of the own images.
        """
        own, partner = self._encode(own, lam), self._encode(partner, 1 - lam)
        query, key = self.query(own).flatten(2), self.query(partner).flatten(2)
        weights = (query.transpose(1, 2) @ key / math.sqrt(query.shape[1])).softmax(2)
        value = self.value(torch.cat([own, partner], 1) if self.variant == "samix" else partner)
        drawn = weights @ value.flatten(2).transpose(1, 2)
        mask: Tensor = drawn.transpose(1, 2).reshape_as(value).sigmoid()
        return mask

    def _encode(self, features: Tensor, lam: float) -> Tensor:
        if self.variant == "samix":
            return features * (1 + lam)
        return torch.cat([features, torch.full_like(features[:, :1], lam)], 1)


class AutoMixNetworks(nn.Module):
    """What AutoMix trains beside the classifier, and the moving average of the classifier that the masks come from.

    Args:
        classifier: Copied; the copy wants no gradient.
        variant: See `MixBlock`.

    Attributes:
        block: Draws the masks.
        encoder: The moving average; in training its BatchNorm layers follow the batches, all else is as in evaluation.
        head: Classifies clean images; the classifier's own head learns the mixed ones.
    """

    def __init__(self, classifier: Classifier, *, variant: Variant) -> None:
        super().__init__()
        self._layer, channels = middle_layer(classifier)
        self.encoder: Any = copy.deepcopy(classifier.module).requires_grad_(False)
        self.block = MixBlock(channels, variant=variant)
        self.head = nn.Linear(self.encoder.head_hidden_size, classifier.num_classes)
        self.to(classifier.device)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Switch to training or evaluation; dropout and its like stay off in the moving average."""
        super().train(mode)
        for layer in self.encoder.modules():
            layer.training = mode and isinstance(layer, _BatchNorm)
        return self

    def features(self, classifier: Classifier, images: Tensor) -> Tensor:
        """Return features of the moving average in its middle, float32 (B, D, h, w), without graph."""
        with torch.no_grad(), tap(self.encoder, activations=[self._layer]) as seen:
            self.encoder.forward_features(images)
        return classifier.to_grid(seen.activations[self._layer], *images.shape[-2:]).float()

    @torch.no_grad()
    def follow(self, module: nn.Module, *, keep: float) -> None:
        """Move the average's parameters towards a model's, keep of the old and 1 - keep of the new; buffers stay."""
        for ours, theirs in zip(self.encoder.parameters(), module.parameters(), strict=True):
            ours.lerp_(theirs, 1 - keep)


def middle_layer(classifier: Classifier) -> tuple[str, int]:
    """Return the name and the channels of the layer that masks are drawn from.

    That is the last one of stride 16 or less, the third of four stages; of models with one stride, three quarters of
    the way.

    Raises:
        ModelError: When timm does not list the stages of the model.
    """
    info: Any = getattr(classifier.module, "feature_info", None)
    stages = list(info if isinstance(info, list) else getattr(info, "info", None) or [])
    names = {name for name, _ in classifier.module.named_modules()}
    stages = [stage for stage in stages if stage.get("module") in names]
    if not stages or not classifier.num_classes or not hasattr(classifier.module, "head_hidden_size"):
        hint = "take a ResNet, ConvNeXt, Swin or plain vision transformer"
        raise ModelError("does not list its stages and the width of its head", where=classifier.name, hint=hint)
    fine = [stage for stage in stages if stage["reduction"] <= 16]
    one_stride = len({stage["reduction"] for stage in stages}) == 1
    chosen = stages[math.ceil(0.75 * len(stages)) - 1] if one_stride or not fine else fine[-1]
    return chosen["module"], int(chosen["num_chs"])
