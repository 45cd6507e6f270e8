"""timm backbones that give features at several strides, for networks that put heads of their own on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn

from wsol.errors import ModelError, did_you_mean
from wsol.models.checkpoints import copy_backbone
from wsol.models.classifier import load_classifier

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Backbone(nn.Module):
    """The features of a timm model; always in evaluation mode, so that batch norms keep their statistics.

    Args:
        name: timm model name.
        pretrained: Load timm's weights from the hub.
        output_stride: Stride of the last features, for CNNs that can dilate; None for the model's own.

    Attributes:
        name: The name.
        strides: Pixels between two positions, one value a level.
        channels: Channels of each level.
        mean: Channel means of the training inputs, for values in [0, 1].
        std: Channel standard deviations.

    Raises:
        ModelError: When there is no such model, its weights cannot be had, or it gives no features.
    """

    def __init__(self, name: str, *, pretrained: bool = False, output_stride: int | None = None) -> None:
        super().__init__()
        self.name = name
        self.body = _build(name, pretrained, output_stride)
        info = self.body.feature_info
        self.strides: tuple[int, ...] = tuple(info.reduction())
        self.channels: tuple[int, ...] = tuple(info.channels())
        self._channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        self.mean, self.std = statistics(name)
        for module in self.body.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.requires_grad_(False)
        self.train()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features (B, D, h, w) of each level, for images (B, 3, H, W) with sides a multiple of `multiple`.

        Args:
            images: Normalized float (B, 3, H, W).
        """
        levels: list[Tensor] = self.body(images)
        return [level.permute(0, 3, 1, 2) for level in levels] if self._channels_last else levels

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode."""
        del mode
        super().train(False)
        return self

    @property
    def multiple(self) -> int:
        """What the sides of the input must be multiples of, so that the levels cover the same area."""
        return max(self.strides)

    def load_classifier(self, name: str | None, checkpoint: str) -> None:
        """Copy the weights that a classifier shares with this backbone, and its mean and std.

        Args:
            name: timm model name; None where the checkpoint is a run folder.
            checkpoint: Weight file, run folder of wsol train, or pip:PACKAGE.

        Raises:
            ModelError: When the checkpoint holds another network.
        """
        classifier = load_classifier(name, checkpoint=checkpoint)
        copy_backbone(
            classifier.module.state_dict(),
            self.body,
            name=f"backbone '{self.name}'",
            where=checkpoint,
            hint="the backbone must be the classifier's network: --model with the same timm name",
        )
        self.mean, self.std = classifier.mean, classifier.std


def statistics(name: str) -> Statistics:
    """Return mean and std of the inputs of a timm model's own weights; those of ImageNet where timm knows none."""
    config = timm.models.get_pretrained_cfg(name)
    return IMAGENET if config is None else (tuple(config.mean), tuple(config.std))


def to_size(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize values (B, D, h, w) bilinearly, pixel centres aligned; size is (height, width)."""
    if values.shape[2:] == size:
        return values
    return torch.nn.functional.interpolate(values, size=size, mode="bilinear", align_corners=False)


def _build(name: str, pretrained: bool, output_stride: int | None) -> Any:
    if ":" not in name and not timm.is_model(name):
        raise ModelError(f"unknown model '{name}'", hint=did_you_mean(name, timm.list_models()))
    dilate: dict[str, Any] = {} if output_stride is None else {"output_stride": output_stride}
    make: Callable[..., nn.Module] = timm.create_model
    # timm has no switch that all architectures know: offer the freest one, until the constructor takes it.
    for sizes in ({"dynamic_img_size": True}, {"strict_img_size": False}, {}):
        try:
            return make(name, pretrained=pretrained, features_only=True, **sizes, **dilate)
        except TypeError as error:
            reason = str(error)
        except Exception as error:  # timm, the hub's client and its transport raise errors of many families
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            hint = "without a network, give --checkpoint FILE" if pretrained else "another --output-stride or --model"
            raise ModelError(f"cannot build the features: {reason}", where=name, hint=hint) from error
    raise ModelError(f"cannot build the features: {reason}", where=name, hint="leave out --output-stride")
