"""PAMR, pixel-adaptive mask refinement: scores diffuse to neighbours of similar colour.

Araslanov, Roth, "Single-Stage Semantic Segmentation from Image Labels", CVPR 2020,
https://arxiv.org/abs/2005.08104. The affinity to the 8 neighbours at each dilation is the softmax over all of them
of -mean over RGB of |dI| / (1e-8 + 0.1 s), s being the standard deviation of the pixel and its neighbours over all
dilations; every iteration replaces a score by its mean under these affinities. Used by GETAM inside training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsol.refine import REFINERS
from wsol.refine._dilated import DILATIONS, as_batch, check_options, deviation, diffuse, neighbours
from wsol.refine.base import check_inputs


@REFINERS.register("pamr")
@dataclass(frozen=True)
class PAMR:
    """Pixel-adaptive mask refinement.

    Attributes:
        iterations: How often scores are averaged.
        dilations: Distances of the 8 neighbours, in pixels.
        device: Torch device, for example "cpu" or "cuda".
    """

    iterations: int = 10
    dilations: tuple[int, ...] = DILATIONS
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_options(self.iterations, self.dilations)

    def __call__(self, image: NDArray[np.uint8], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the averaged scores, whose sum over C stays; see `wsol.refine.base.Refiner`."""
        check_inputs(image, scores)
        pixels, masks = as_batch(image, scores, self.device)
        refined = pamr(pixels, masks, iterations=self.iterations, dilations=self.dilations)
        # Rounding may leave [0, 1] by an ulp.
        return np.asarray(refined[0].clamp_(0, 1).cpu().numpy())


def pamr(
    images: Tensor,
    masks: Tensor,
    *,
    iterations: int = 10,
    dilations: Sequence[int] = DILATIONS,
) -> Tensor:
    """Refine a batch of masks; no gradient flows.

    Args:
        images: (B, 3, H, W), any scale (0 to 255 in GETAM).
        masks: (B, C, H, W), any values; the result is an average of them.
        iterations: How often masks are averaged.
        dilations: Distances of the 8 neighbours, in pixels.

    Returns:
        float32 (B, C, H, W) on the device of the masks.

    Raises:
        ConfigError: When an option is out of range.
        DataError: When the sizes differ.
    """
    return diffuse(images, masks, _affinities, iterations=iterations, dilations=dilations)


def _affinities(images: Tensor, dilations: Sequence[int]) -> list[Tensor]:
    """Return one (B, 1, H, W) weight a neighbour, summing to one."""
    spread = deviation(images, dilations, count=9 * len(dilations))
    sharpness = 1 / (images.shape[1] * (1e-8 + 0.1 * spread))
    affinities = []
    for neighbour in neighbours(images, dilations):
        distance = (neighbour - images).abs_().mul_(sharpness).sum(dim=1, keepdim=True)
        # Never below exp(-75), as no difference exceeds 7.5 deviations: the softmax needs no shift.
        affinities.append(distance.neg_().exp_())
    norm = torch.stack([affinity.sum(dim=1, keepdim=True) for affinity in affinities]).sum(dim=0)
    return [affinity.div_(norm) for affinity in affinities]
