"""A classifier and a segmentation network on one vision transformer, for training both at once (GETAM).

Sun et al., "GETAM: Gradient-weighted Element-wise Transformer Attention Map for Weakly-supervised Semantic
segmentation", arXiv 2021, https://arxiv.org/abs/2112.02841. With DPT the classifier is that of the paper: the deepest
tokens with the class token projected into them, brought to 1/32 of the image by DPT's own convolutions, averaged, and
one linear layer. DPT is that of segmentation_models_pytorch: without the squeeze-and-excitation layer that the paper's
code has before the head, without the ResNet stages of its hybrid, and with its own widths and position resize. With
Segmenter the classifier is the usual one: a linear layer on the class token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from segmentation_models_pytorch import DPT
from torch import Tensor, nn

from wsol.errors import ModelError
from wsol.models._wrapped import Wrapped
from wsol.models.classifier import Classifier
from wsol.models.segmenter import Segmenter
from wsol.models.vit_segmenter import ViTSegmenter


class TwoBranch(nn.Module, ABC):
    """A linear classifier beside the decoder of a segmentation network.

    Args:
        segmenter: The network; it is not copied.
        width: Channels that the classifier reads.
        num_classes: Outputs of the classifier.
    """

    def __init__(self, segmenter: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.segmenter: Any = segmenter
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits (B, C) and pixel logits (B, 1 + C, h, w) of images (B, 3, h, w), from one pass."""
        features = self.encode(images)
        return self.head(self.pool(features)), self.decode(features, images)

    def classify(self, images: Tensor) -> Tensor:
        """Return class logits (B, C) of images (B, 3, h, w), without a pass through the decoder."""
        logits: Tensor = self.head(self.pool(self.encode(images)))
        return logits

    def classifier(self, *, img_size: int) -> Classifier:
        """Return the classification branch for the map methods; it shares every weight.

        Args:
            img_size: Side of the input in pixels.
        """
        return Classifier(_ClassifierBranch(self), input_size=(img_size, img_size))

    @property
    @abstractmethod
    def transformer(self) -> nn.Module:
        """The timm transformer that both branches stand on."""

    @abstractmethod
    def encode(self, images: Tensor) -> Any:
        """Return what both branches read."""

    @abstractmethod
    def pool(self, features: Any) -> Tensor:
        """Return what the classifier reads (B, D)."""

    @abstractmethod
    def decode(self, features: Any, images: Tensor) -> Tensor:
        """Return pixel logits (B, 1 + C, h, w) for images (B, 3, h, w)."""


class DPTBranches(TwoBranch):
    """The branches of GETAM on DPT.

    Args:
        segmenter: The network.
        num_classes: Outputs of the classifier.
    """

    def __init__(self, segmenter: DPT, num_classes: int) -> None:
        width = segmenter.decoder.reassemble_blocks[-1].project_to_out_channel.out_channels
        super().__init__(segmenter, width, num_classes)

    @property
    def transformer(self) -> nn.Module:
        """The timm transformer."""
        module: nn.Module = self.segmenter.encoder.model
        return module

    def encode(self, images: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
        """Return patch grids and prefix tokens of the blocks that the decoder reads."""
        features: tuple[list[Tensor], list[Tensor | None]] = self.segmenter.encoder(images)
        return features

    def pool(self, features: tuple[list[Tensor], list[Tensor | None]]) -> Tensor:
        """Return the mean of the deepest grid where the decoder has halved it."""
        decoder = self.segmenter.decoder
        project, reassemble = decoder.projection_blocks[-1], decoder.reassemble_blocks[-1]
        halved: Tensor = reassemble.upsample(reassemble.project_to_out_channel(project(*(x[-1] for x in features))))
        return halved.mean((2, 3))

    def decode(self, features: tuple[list[Tensor], list[Tensor | None]], images: Tensor) -> Tensor:
        """Return the pixel logits of the decoder."""
        logits: Tensor = self.segmenter.segmentation_head(self.segmenter.decoder(*features))
        return logits


class SegmenterBranches(TwoBranch):
    """The usual head of a transformer beside the decoder of Segmenter.

    Args:
        segmenter: The network.
        num_classes: Outputs of the classifier.
    """

    def __init__(self, segmenter: ViTSegmenter, num_classes: int) -> None:
        super().__init__(segmenter, int(segmenter.encoder.num_features), num_classes)

    @property
    def transformer(self) -> nn.Module:
        """The timm transformer."""
        module: nn.Module = self.segmenter.encoder
        return module

    def encode(self, images: Tensor) -> Tensor:
        """Return all final tokens; the sides of the images are multiples of the patch."""
        tokens: Tensor = self.segmenter.tokens(images)
        return tokens

    def pool(self, features: Tensor) -> Tensor:
        """Return the class token, or what else the transformer's head reads."""
        pooled: Tensor = self.segmenter.encoder.forward_head(features, pre_logits=True)
        return pooled

    def decode(self, features: Tensor, images: Tensor) -> Tensor:
        """Return the pixel logits of the decoder."""
        height, width = images.shape[2:]
        patches = features[:, self.segmenter.prefix :].transpose(1, 2)
        rows, columns = height // self.segmenter.patch, width // self.segmenter.patch
        grid = patches.reshape(len(images), -1, rows, columns)
        logits: Tensor = self.segmenter.decode([grid], (height, width))
        return logits


class _ClassifierBranch(Wrapped):
    """Passes for a timm transformer whose head is the classifier of the two branches."""

    def __init__(self, branches: TwoBranch) -> None:
        super().__init__(branches.transformer)
        self.num_classes, self._classify = branches.head.out_features, branches.classify

    def forward(self, x: Tensor) -> Tensor:
        return self._classify(x)


def add_classifier(segmenter: Segmenter) -> TwoBranch:
    """Put a new classifier of the same classes, background left out, beside a segmentation network.

    Args:
        segmenter: DPT or Segmenter; its module is not copied. The new weights come from torch's generator.

    Returns:
        Both branches, on the device of the network.

    Raises:
        ModelError: When the network is another one.
    """
    module, count = segmenter.module, len(segmenter.facts.classes)
    device = next(module.parameters()).device
    if isinstance(module, DPT):
        return DPTBranches(module, count).to(device)
    if isinstance(module, ViTSegmenter):
        return SegmenterBranches(module, count).to(device)
    raise ModelError("needs a plain vision transformer", where=segmenter.facts.arch, hint="take dpt or segmenter")
