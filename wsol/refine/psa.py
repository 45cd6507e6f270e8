"""PSA: a random walk along learned affinities of pixels (AffinityNet).

Ahn, Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised Semantic
Segmentation", CVPR 2018, https://arxiv.org/abs/1803.10464. Scores of all channels, background included, are averaged
over cells of 8 pixels and multiplied 256 times with the transition matrix of the affinities to the power 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsol.ops.random_walk import neighbour_offsets, random_walk
from wsol.refine import REFINERS
from wsol.refine._walk import check_walk, network, to_grid, to_image
from wsol.refine.base import check_inputs

if TYPE_CHECKING:
    from wsol.models.affinity import AffinityModel


@REFINERS.register("psa")
@dataclass(frozen=True)
class PSA:
    """Random walk with an AffinityNet of `wsol refine train-affinity --method psa`; the paper adds --alpha 16.

    Two things differ from the paper's code: pairs at the left, right and lower border of the image are used too, and
    a cell that reaches over the border counts only the pixels inside.

    Attributes:
        checkpoint: Run folder of the training; needed.
        img_size: Long side in pixels at which the network sees the image; by default that of the training.
        radius: Pairs of grid positions nearer than this are connected.
        beta: Power of the affinities.
        steps: Steps of the walk (2 to the power of the paper's t = 8).
        device: Torch device, for example "cpu" or "cuda".
    """

    checkpoint: Path | None = None
    img_size: int | None = None
    radius: int = 5
    beta: float = 8.0
    steps: int = 256
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_walk(self.beta, self.steps, self.img_size)
        neighbour_offsets(self.radius)

    def load(self) -> AffinityModel:
        """Return the network; see `wsol.refine.base.Learned`."""
        return network(self.checkpoint, method="psa", device=self.device)

    def __call__(self, image: NDArray[np.uint8], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the walked scores of all channels; see `wsol.refine.base.Refiner`."""
        check_inputs(image, scores)
        model = self.load()
        import torch  # with the network, not for --help

        from wsol.models.pixel_pairs import feature_affinity

        offsets, stride = neighbour_offsets(self.radius), model.stride
        with torch.no_grad():
            pixels, size = model.prepare(image, img_size=self.img_size)
            grid = to_grid(scores, size, stride=stride)
            features = model.module(pixels)[:, :, : grid.shape[1], : grid.shape[2]]
            affinity = feature_affinity(features, offsets)[0].cpu().numpy()
        walked = random_walk(grid, affinity, offsets, beta=self.beta, steps=self.steps)
        return to_image(walked, size, stride=stride, image_size=image.shape[:2]).clip(0, 1)
