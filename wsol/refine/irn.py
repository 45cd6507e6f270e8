"""IRN: a random walk that does not cross learned class boundaries (IRNet).

Ahn, Cho, Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019,
https://arxiv.org/abs/1904.05044. On a grid of 4 pixels, the scores of the classes away from boundaries are multiplied
256 times with the transition matrix of the affinities to the power 10, 1 minus the highest boundary between two
positions, and divided by the maximum over all classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsol.ops.random_walk import neighbour_offsets, random_walk
from wsol.refine import REFINERS
from wsol.refine._instances import Instance, find_centroids, group_by_centroid, read_instances, split_by_group
from wsol.refine._walk import check_walk, network, to_grid, to_image
from wsol.refine.base import check_inputs, with_background

if TYPE_CHECKING:
    from wsol.models.affinity import AffinityModel

_TINY = 1e-30  # instead of a maximum of 0


@REFINERS.register("irn")
@dataclass(frozen=True)
class IRN:
    """Random walk with an IRNet of `wsol refine train-affinity --method irn`.

    Channel 0 is returned as it came, so a constant `--background` (0.25 in the paper) is the threshold of the walked
    scores; `--alpha` would be a background of the scores before the walk.

    Attributes:
        checkpoint: Run folder of the training; needed.
        img_size: Long side in pixels at which the network sees the image; by default that of the training.
        radius: Pairs of grid positions nearer than this are connected.
        beta: Power of the affinities.
        steps: Steps of the walk (2 to the power of the paper's 8).
        flip: Average the boundaries with those of the mirrored image.
        device: Torch device, for example "cpu" or "cuda".
    """

    checkpoint: Path | None = None
    img_size: int | None = None
    radius: int = 5
    beta: float = 10.0
    steps: int = 256
    flip: bool = True
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_walk(self.beta, self.steps, self.img_size)
        neighbour_offsets(self.radius)

    def load(self) -> AffinityModel:
        """Return the network; see `wsol.refine.base.Learned`."""
        return network(self.checkpoint, method="irn", device=self.device)

    def __call__(self, image: NDArray[np.uint8], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return channel 0 as it is and the walked scores of the classes; see `wsol.refine.base.Refiner`."""
        check_inputs(image, scores)
        refined = np.array(scores, dtype=np.float32)
        if len(scores) > 1:
            _, boundary, size, stride = self.relations(image)
            walked = self.walk(to_grid(scores[1:], size, stride=stride), boundary)
            full = to_image(walked, size, stride=stride, image_size=image.shape[:2])
            refined[1:] = _to_one(full)
        return refined

    def instances(
        self, image: NDArray[np.uint8], maps: NDArray[np.float32], *, background: float = 0.25
    ) -> list[Instance]:
        """Find the objects of an image: maps split by centroid, walked one by one.

        Args:
            image: uint8 (H, W, 3) RGB.
            maps: float32 (K, H, W) in [0, 1], one a class, without background.
            background: Score of the background against the walked scores, whose maximum is 1.

        Returns:
            The objects; masks do not overlap.
        """
        check_inputs(image, with_background(maps, background=background))
        if not len(maps):
            return []
        field, boundary, size, stride = self.relations(image)
        groups = group_by_centroid(find_centroids(field), field)
        grid = to_grid(maps, size, stride=stride)
        walked = self.walk(split_by_group(grid, groups), boundary)
        full = to_image(walked, size, stride=stride, image_size=image.shape[:2])
        return list(read_instances(_to_one(full), channels=len(maps), background=background))

    def relations(
        self, image: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], tuple[int, int], int]:
        """Run the network on an image.

        Args:
            image: uint8 (H, W, 3) RGB.

        Returns:
            float32 (2, h, w) displacements (dy, dx) in grid positions, float32 (h, w) boundaries in [0, 1], the size in
            pixels at which the network saw the image, and the pixels between two grid positions.
        """
        model = self.load()
        import torch  # with the network, not for --help

        with torch.no_grad():
            pixels, size = model.prepare(image, img_size=self.img_size)
            logits, field = model.module(torch.cat([pixels, pixels.flip(-1)]) if self.flip else pixels)
            logits = (logits[:1] + logits[1:].flip(-1)) / 2 if self.flip else logits
            rows, columns = (-(-side // model.stride) for side in size)
            boundary = torch.sigmoid(logits)[0, 0, :rows, :columns].cpu().numpy()
            return field[0, :, :rows, :columns].cpu().numpy(), boundary, size, model.stride

    def walk(self, grid: NDArray[np.float32], boundary: NDArray[np.float32]) -> NDArray[np.float32]:
        """Walk scores float32 (K, h, w) on the grid of the boundaries (h, w)."""
        import torch  # with the network, not for --help

        from wsol.models.pixel_pairs import boundary_affinity

        offsets = neighbour_offsets(self.radius)
        affinity = boundary_affinity(torch.from_numpy(boundary)[None, None], offsets)[0].numpy()
        return random_walk(grid * (1 - boundary), affinity, offsets, beta=self.beta, steps=self.steps)


def _to_one(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divide scores by their maximum over all channels; all 0 stay 0."""
    return scores / max(float(scores.max(initial=0.0)), _TINY)
