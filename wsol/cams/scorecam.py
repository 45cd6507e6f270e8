"""Score-CAM: each channel weighed by the class score of the image seen through it.

Wang, Wang, Du, Yang, Zhang, Ding, Mardziel, Hu, "Score-CAM: Score-Weighted Visual Explanations for Convolutional
Neural Networks", CVPR Workshops 2020, https://arxiv.org/abs/1910.01279. The activations of a channel, scaled to [0, 1]
and enlarged to the input, mask the image; the score of class c then, softmax over the channels, is w_d, and
M_c = sum_d w_d F_d. (The score of the paper's baseline image is the same for all channels, so the softmax drops it.)

We follow torchcam, which enlarges as all of wsol does (bilinear, half-pixel centres, as the authors' code);
pytorch-grad-cam aligns the corners instead. No gradient; the forward passes, one a channel, serve all classes of an
image. The paper's final ReLU is left to the normalization of the maps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from wsol.cams import CAMS
from wsol.cams._layers import LayerMethod, check_scores, fuse, read
from wsol.cams.base import ClassChoice, RawMaps, choose
from wsol.errors import ConfigError
from wsol.models.classifier import Classifier
from wsol.models.taps import tap


@CAMS.register("scorecam")
@dataclass(frozen=True, kw_only=True)
class ScoreCAM(LayerMethod):
    """Each channel weighed by the class score of the image seen through it."""

    batch_size: int = 32
    """Masked images in one forward pass."""

    def check(self, classifier: Classifier) -> None:
        """Refuse models without class scores or target layer."""
        check_scores(classifier)
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {self.batch_size}", where="scorecam")
        super().check(classifier)

    def maps(self, classifier: Classifier, images: Tensor, class_ids: ClassChoice) -> RawMaps:
        """Make the maps of a batch."""
        names, size = self.layers(classifier), images.shape[-2:]
        with torch.inference_mode(), tap(classifier.module, activations=names) as tapped:
            scores = classifier.module(images)
        with torch.no_grad():
            logits = scores.float().clone()
            ids = choose(class_ids, logits)
            grids = [classifier.to_grid(item, *size).float() for item in read(tapped, names, classifier, images)]
            values = tuple(
                fuse([self._map(classifier, images[at : at + 1], grid[at], row) for grid in grids])
                for at, row in enumerate(ids)
            )
        return RawMaps(values, ids, logits)

    def _map(self, classifier: Classifier, image: Tensor, channels: Tensor, class_ids: tuple[int, ...]) -> Tensor:
        if not class_ids:
            return channels.new_zeros(0, *channels.shape[1:])
        lowest, highest = channels.amin((1, 2), keepdim=True), channels.amax((1, 2), keepdim=True)
        span = highest - lowest
        masks = (channels - lowest) / torch.where(span > 0, span, 1.0)
        scores = []
        with torch.inference_mode():
            for chunk in torch.split(masks[:, None], self.batch_size):
                enlarged = F.interpolate(chunk, size=image.shape[-2:], mode="bilinear", align_corners=False)
                scores.append(classifier.module(image * enlarged.to(image))[:, class_ids].float())
        weights = torch.cat(scores).softmax(0)
        with torch.autocast(image.device.type, enabled=False):
            return torch.einsum("dk,dhw->khw", weights, channels)
