"""Eigen-CAM: the first principal component of the activations; knows no classes.

Muhammad, Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", IJCNN 2020,
https://arxiv.org/abs/2008.00299. Each position's activations are projected on the first principal component. We follow
pytorch-grad-cam and take the mean position off first (see `_eigen`); torchcam does not have it. One forward pass, no
gradient, the same map for every class, also for models without a head.

The sign of a principal component is arbitrary. We take the one with which the position farthest from the mean is
positive, equation 13 of Chung, Ying, "Seg-Eigen-CAM", Applied Sciences 2025, https://doi.org/10.3390/app15137562:
objects are fewer than background, and so lie farther out. pytorch-grad-cam keeps the sign that the SVD happens to give.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsol.cams import CAMS
from wsol.cams._eigen import principal
from wsol.cams._layers import LayerMethod, fuse, read
from wsol.cams.base import ClassChoice, RawMaps, choose, true_logits
from wsol.models.classifier import Classifier
from wsol.models.taps import tap


@CAMS.register("eigencam")
@dataclass(frozen=True, kw_only=True)
class EigenCAM(LayerMethod):
    """The first principal component of the activations; knows no classes."""

    def maps(self, classifier: Classifier, images: Tensor, class_ids: ClassChoice) -> RawMaps:
        """Make the maps of a batch."""
        names, size = self.layers(classifier), images.shape[-2:]
        with torch.inference_mode(), tap(classifier.module, activations=names) as tapped:
            scores = classifier.module(images)
        # Out of inference mode again, so that the results are ordinary tensors; in float32 also under autocast.
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            logits = true_logits(classifier, scores).clone()
            ids = choose(class_ids, logits)
            layers = [_map(classifier.to_grid(item, *size).float()) for item in read(tapped, names, classifier, images)]
            values = tuple(
                fuse([layer[at].expand(len(row), -1, -1).clone() for layer in layers]) for at, row in enumerate(ids)
            )
        return RawMaps(values, ids, logits)


def _map(features: Tensor) -> Tensor:
    plane = principal(features)
    flipped = -plane.amin((1, 2), keepdim=True) > plane.amax((1, 2), keepdim=True)
    return torch.where(flipped, -plane, plane)
