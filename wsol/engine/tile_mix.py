"""MUM: tiles of several images mixed into each other, features put back, and a slow teacher to agree with.

Kim, Jang, Seo, Jeong, Na, Kwak, "MUM: Mix Image Tiles and UnMix Feature Tiles for Semi-Supervised Object Detection",
CVPR 2022, https://arxiv.org/abs/2111.10958. The student sees mixed tiles; its features are put back into their own
images before the decoder, whose labels must agree with those of a teacher, the moving average of the student, on the
images as they were.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsol.engine.losses_segment import masked_cross_entropy
from wsol.models.segmenter import decode, encode
from wsol.schema import IGNORE

GROUP = 4
_TILES = 4
_SURE = 0.7
_FIRST_KEEP, _LAST_KEEP = 0.5, 0.9996


def draw_tiles(count: int, generator: torch.Generator, *, tiles: int = _TILES, group: int = GROUP) -> Tensor:
    """Draw for each cell which image of its group goes where.

    Args:
        count: Images; a multiple of `group`.
        generator: Source of randomness, on the CPU.
        tiles: Tiles a side.
        group: Images that are mixed with one another.

    Returns:
        int64 (count / group, group, tiles, tiles): a permutation of the group for every cell.
    """
    return torch.rand((count // group, group, tiles, tiles), generator=generator).argsort(dim=1)


def mix_tiles(images: Tensor, mask: Tensor) -> Tensor:
    """Put the tiles of images into one another.

    Args:
        images: (B, C, h, w), h and w multiples of the tiles a side.
        mask: int64 (B / group, group, tiles, tiles): the image of the group that each cell is taken from.

    Returns:
        (B, C, h, w).
    """
    groups, size, tiles = mask.shape[:3]
    height, width = images.shape[2] // tiles, images.shape[3] // tiles
    where = mask.repeat_interleave(height, dim=2).repeat_interleave(width, dim=3)[:, :, None].to(images.device)
    grouped = images.reshape(groups, size, *images.shape[1:])
    return grouped.gather(1, where.expand_as(grouped)).reshape(images.shape)


def unmix_tiles(features: Tensor, mask: Tensor) -> Tensor:
    """Undo `mix_tiles` on feature maps.

    Args:
        features: (B, D, h, w) of the mixed images; sides that are no multiples of the tiles are resized there and back.
        mask: As it was given to `mix_tiles`.

    Returns:
        (B, D, h, w).
    """
    tiles = mask.shape[2]
    height, width = features.shape[2:]
    fitting = (max(tiles, height // tiles * tiles), max(tiles, width // tiles * tiles))
    resized = features if fitting == (height, width) else _resize(features, fitting)
    unmixed = mix_tiles(resized, mask.argsort(dim=1))
    return unmixed if fitting == (height, width) else _resize(unmixed, (height, width))


class WithTeacher(nn.Module):
    """A network and the moving average of its weights, in one module so that a checkpoint holds both.

    Args:
        student: A segmentation network.
        ramp: Steps over which the teacher's memory grows, from 0.5 to 0.9996 of its weights a step.
    """

    def __init__(self, student: nn.Module, *, ramp: int) -> None:
        super().__init__()
        self.student = student
        self.teacher = copy.deepcopy(student).requires_grad_(requires_grad=False)
        self.ramp = ramp
        self.updates: Tensor
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the student."""
        logits: Tensor = self.student(images)
        return logits

    def train(self, mode: bool = True) -> WithTeacher:
        """Put the student into training mode; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def follow(self) -> None:
        """Move the teacher towards the student, after a step of the optimizer."""
        done = int(self.updates)
        self.updates += 1
        keep = min(_LAST_KEEP, _FIRST_KEEP + (_LAST_KEEP - _FIRST_KEEP) * done / max(1, self.ramp))
        own, new = self.teacher.state_dict(), self.student.state_dict()
        for name, value in own.items():
            if value.is_floating_point():
                value.lerp_(new[name], 1 - keep)
            else:
                value.copy_(new[name])

    def consistency(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the cross-entropy of the student on mixed tiles with the sure labels of the teacher.

        Args:
            images: (B, 3, h, w) network input; images beyond a multiple of four are left out.
            generator: Draws the tiles, on the CPU.

        Returns:
            A scalar: the mean over the pixels where the teacher's probability exceeds 0.7; 0 where there is none.
        """
        count = len(images) // GROUP * GROUP
        images = images[:count]
        if not count:
            return images.sum()
        with torch.no_grad():
            sure, labels = self.teacher(images).float().softmax(dim=1).max(dim=1)
            labels[sure <= _SURE] = IGNORE
        mask = draw_tiles(count, generator)
        features = [unmix_tiles(each, mask) for each in encode(self.student, mix_tiles(images, mask))]
        logits = decode(self.student, features, (images.shape[2], images.shape[3])).float()
        return masked_cross_entropy(logits, labels)


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
