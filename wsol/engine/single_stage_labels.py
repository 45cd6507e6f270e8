"""What single-stage training learns from: views with saliency, labels made from the maps of the moment, and the losses.

Sun et al., "GETAM", arXiv 2021, https://arxiv.org/abs/2112.02841. The maps are enlarged with corners aligned, smoothed
by PAMR on the colours, divided by their maximum (plus 1e-5), given a background score (1 - max)^32, and labelled by
GETAM's completion. The segmentation network then learns with the cross-entropy of the background and that of the
objects, each a mean of its own, the dense energy, and the binary cross-entropy between its background and the saliency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wsol.data.images import read_image
from wsol.data.transforms import augment_pair
from wsol.engine.losses_segment import dense_energy, masked_cross_entropy
from wsol.engine.mask_source import read_saliency
from wsol.refine.base import with_background
from wsol.refine.getam_completion import complete_labels
from wsol.refine.pamr import pamr
from wsol.schema import IGNORE, Sample

_LEAST = 1e-5


@dataclass(frozen=True)
class SaliencyViews:
    """Reads an image and its saliency; see `loaders.Views`.

    Attributes:
        saliency: Folder of saliency maps, or None.
        img_size: Side of the view in pixels.
        zoom: Range of the random zoom.
        hflip: Probability of a mirror image.
        color_jitter: Strength of random brightness, contrast and saturation.
    """

    saliency: Path | None
    img_size: int
    zoom: tuple[float, float]
    hflip: float
    color_jitter: float

    def __call__(self, sample: Sample, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return uint8 (img_size, img_size, 3), and uint8 (img_size, img_size): 1 salient, 0 not, 255 padding.

        Without saliency every pixel of the image is 1.
        """
        image = read_image(sample.image, upright=sample.upright)
        height, width = image.shape[:2]
        salient = np.ones((height, width), np.uint8)
        if self.saliency is not None:
            salient[read_saliency(self.saliency, sample.id, (height, width)) == 0] = 0
        size = (self.img_size, self.img_size)
        return augment_pair(image, salient, size, rng, scale=self.zoom, flip=self.hflip, jitter=self.color_jitter)


@torch.no_grad()
def online_labels(
    maps: Sequence[Tensor],
    class_ids: Sequence[Sequence[int]],
    images: NDArray[np.uint8],
    salient: NDArray[np.bool_] | None,
    *,
    alpha: float = 32.0,
    quantile: float = 0.9,
    opening: int = 10,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Label a batch from its maps.

    Args:
        maps: A float tensor (K_i, rows, columns) an image, not negative.
        class_ids: The K_i class ids of each image.
        images: uint8 (B, h, w, 3) RGB.
        salient: bool (B, h, w); None takes the pixels in which a class beats the background, so that none is ignored.
        alpha: Power of the background score.
        quantile: See `complete_labels`.
        opening: See `complete_labels`.

    Returns:
        uint8 (B, h, w) labels: 0 background, class id + 1, 255 ignored.
        bool (B, h, w): pixels that a class took from the background.
    """
    most = max(1, *(len(item) for item in maps))
    padded = torch.stack([F.pad(item.float(), (0, 0, 0, 0, 0, most - len(item))) for item in maps])
    full = F.interpolate(padded, size=images.shape[1:3], mode="bilinear", align_corners=True)
    colours = torch.from_numpy(images).to(full.device).permute(0, 3, 1, 2)
    smooth = pamr(colours, full)
    scaled = (smooth / (smooth.amax((2, 3), keepdim=True) + _LEAST)).cpu().numpy()
    labels, completed = np.empty(images.shape[:3], np.uint8), np.empty(images.shape[:3], np.bool_)
    for at, ids in enumerate(class_ids):
        scores = with_background(scaled[at, : len(ids)], alpha=alpha)
        objects = scores.argmax(axis=0) > 0 if salient is None else salient[at]
        found = complete_labels(scores, np.asarray(ids, np.int64), objects, quantile=quantile, opening=opening)
        labels[at], completed[at] = found
    return labels, completed


def segmentation_loss(
    logits: Tensor, labels: Tensor, images: NDArray[np.uint8], inside: Tensor, *, crf_weight: float = 1e-7
) -> Tensor:
    """Return the cross-entropy over the background, that over the objects, and the weighted dense energy, added up.

    Args:
        logits: Float (B, 1 + C, h, w), background first.
        labels: Integer (B, h, w); 255 is ignored.
        images: uint8 (B, h, w, 3) RGB.
        inside: Bool (B, h, w), False on padding.
        crf_weight: Weight of the energy; 0 leaves it out.
    """
    background = masked_cross_entropy(logits, labels.masked_fill(labels != 0, IGNORE))
    objects = masked_cross_entropy(logits, labels.masked_fill(labels == 0, IGNORE))
    loss = background + objects
    return loss + crf_weight * dense_energy(logits.softmax(dim=1), images, inside) if crf_weight else loss


def saliency_loss(logits: Tensor, salient: Tensor, inside: Tensor) -> Tensor:
    """Return the binary cross-entropy between the probability of the background and what is not salient.

    Args:
        logits: Float (B, 1 + C, h, w), background first.
        salient: Bool (B, h, w).
        inside: Bool (B, h, w), False on padding, which does not count.
    """
    # The odds of the first channel of a softmax: exact where the probability itself would round to 0 or 1.
    odds = logits[:, 0] - logits[:, 1:].logsumexp(dim=1)
    return F.binary_cross_entropy_with_logits(odds[inside], (~salient)[inside].to(odds))
