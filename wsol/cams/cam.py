"""CAM: the last features, weighed by the linear classifier that reads their average.

Zhou, Khosla, Lapedriza, Oliva, Torralba, "Learning Deep Features for Discriminative Localization", CVPR 2016,
https://arxiv.org/abs/1512.04150. Map of class c: M_c = sum_d w_cd F_d, so that mean(M_c) + bias_c is the logit, as in
torchcam; pytorch-grad-cam does not have it. One forward pass, no gradient. The model must pool its last features
evenly into one linear layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsol.cams import CAMS
from wsol.cams.base import ClassChoice, MapMethod, RawMaps, choose
from wsol.errors import ModelError
from wsol.models.classifier import Classifier


@CAMS.register("cam")
@dataclass(frozen=True, kw_only=True)
class CAM(MapMethod):
    """The last features, weighed by the linear classifier that reads their average."""

    def check(self, classifier: Classifier) -> None:
        """Refuse models whose logits are not the mean of a linear map of the features."""
        if not classifier.pools_linearly:
            raise ModelError(
                "CAM needs an average pool and one linear layer after the last features",
                where=classifier.name,
                hint="gradcam, gradcampp and layercam work with any head",
            )

    def maps(self, classifier: Classifier, images: Tensor, class_ids: ClassChoice) -> RawMaps:
        """Make the maps of a batch."""
        with torch.inference_mode():
            features = classifier.module.forward_features(images)
            scores = classifier.module.forward_head(features)
        # Out of inference mode again, so that the results are ordinary tensors; in float32 also under autocast.
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            logits = scores.float().clone()
            ids = choose(class_ids, logits)
            grid = classifier.to_grid(features, *images.shape[-2:]).float()
            weight = classifier.head_weight()[0].float()
            values = tuple(
                torch.einsum("kd,dhw->khw", weight[torch.tensor(row, dtype=torch.int64)], item)
                for row, item in zip(ids, grid, strict=True)
            )
        return RawMaps(values, ids, logits)
