"""PAR, pixel-adaptive refinement: PAMR with squared colour differences and a position term.

Ru et al., "Learning Affinity from Attention: End-to-End Weakly-Supervised Semantic Segmentation with Transformers"
(AFA), CVPR 2022, https://arxiv.org/abs/2203.02664; also used by ToCo. The affinity to the 8 neighbours at each
dilation is the softmax over all of them of -mean over RGB of (|dI| / (1e-8 + s) / 0.3)^2, s being the standard
deviation of the neighbours, plus 0.01 times the softmax of the same expression of their distance; every iteration
replaces a score by the sum of its neighbours times their affinity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsol.refine import REFINERS
from wsol.refine._dilated import DILATIONS, STEPS, as_batch, check_options, deviation, diffuse, neighbours
from wsol.refine.base import check_inputs

_COLOUR_WIDTH, _POSITION_WEIGHT = 0.3, 0.01


@REFINERS.register("par")
@dataclass(frozen=True)
class PAR:
    """Pixel-adaptive refinement.

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
        """Return the averaged scores, whose sum over C stays; see `wsol.refine.base.Refiner`.

        The published affinities sum to 1.01; the growth by 1.01 an iteration, the same everywhere, is taken out.
        """
        check_inputs(image, scores)
        pixels, masks = as_batch(image, scores, self.device)
        refined = par(pixels, masks, iterations=self.iterations, dilations=self.dilations)
        refined /= (1 + _POSITION_WEIGHT) ** self.iterations
        # Rounding may leave [0, 1] by an ulp.
        return np.asarray(refined[0].clamp_(0, 1).cpu().numpy())


def par(
    images: Tensor,
    masks: Tensor,
    *,
    iterations: int = 10,
    dilations: Sequence[int] = DILATIONS,
) -> Tensor:
    """Refine a batch of masks as published; no gradient flows.

    Args:
        images: (B, 3, H, W), any scale (0 to 255 in AFA).
        masks: (B, C, H, W), any values.
        iterations: How often masks are averaged.
        dilations: Distances of the 8 neighbours, in pixels.

    Returns:
        float32 (B, C, H, W) on the device of the masks: an average of the masks times 1.01^iterations.

    Raises:
        ConfigError: When an option is out of range.
        DataError: When the sizes differ.
    """
    return diffuse(images, masks, _affinities, iterations=iterations, dilations=dilations)


def _affinities(images: Tensor, dilations: Sequence[int]) -> list[Tensor]:
    """Return one (B, 1, H, W) weight a neighbour, summing to 1.01."""
    spread = deviation(images, dilations, count=len(STEPS) * len(dilations))
    sharpness = 1 / ((spread + 1e-8) * _COLOUR_WIDTH)
    colour = [
        (neighbour - images).mul_(sharpness).square_().mean(dim=1, keepdim=True).neg_()
        for neighbour in neighbours(images, dilations)
    ]
    # A pixel unlike all its neighbours is any number of deviations away from them: shift before the exponential.
    highest = colour[0].clone()
    for exponent in colour:
        torch.maximum(highest, exponent, out=highest)
    norm = torch.zeros_like(highest)
    for exponent in colour:
        norm += exponent.sub_(highest).exp_()
    position = _POSITION_WEIGHT * _position(dilations)
    return [share.div_(norm).add_(weight) for share, weight in zip(colour, position.tolist(), strict=True)]


def _position(dilations: Sequence[int]) -> Tensor:
    distances = torch.tensor([dilation * math.hypot(*step) for dilation in dilations for step in STEPS])
    return (-((distances / (distances.std() + 1e-8) / _COLOUR_WIDTH) ** 2)).softmax(0)
