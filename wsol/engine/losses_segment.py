"""Losses of segmentation networks on masks that are incomplete or wrong in places.

Pixels labelled 255 take part in none of them, so scribbles, points and masks cut at a confidence need no loss of their
own: the cross-entropy over the labelled pixels is the partial cross-entropy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wsol.ops.permutohedral import build_lattice
from wsol.schema import IGNORE

# The lattice is scaled as the published code does; its filter stays at about half of the Gaussian sum.
_LATTICE_GAIN = 1 + 2.0**-5


def masked_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy averaged over the pixels that are not ignored; 0 where all are.

    Args:
        logits: Float (B, C, h, w).
        labels: Integer (B, h, w); 255 is ignored.
    """
    total = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


def hard_pixel_loss(logits: Tensor, labels: Tensor, *, threshold: float = 0.7, keep: float = 0.0625) -> Tensor:
    """Return the cross-entropy over hard pixels only: online bootstrapping.

    Wu, Shen, van den Hengel, "Bridging Category-level and Instance-level Semantic Image Segmentation", 2016,
    https://arxiv.org/abs/1605.06885: pixels whose label is given a probability of at most `threshold` count, and at
    least a share `keep` of the labelled pixels.

    Args:
        logits: Float (B, C, h, w).
        labels: Integer (B, h, w); 255 is ignored.
        threshold: Largest probability of a hard pixel.
        keep: Least share of the labelled pixels, the hardest first.

    Returns:
        A scalar: the mean over the hard pixels; 0 where all are ignored.
    """
    losses = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="none")[labels != IGNORE]
    if not len(losses):
        return logits.sum() * 0
    least = min(len(losses), max(1, round(keep * len(losses))))
    # A low probability is a high loss.
    limit = torch.minimum(losses.detach().topk(least).values[-1], -torch.log(losses.new_tensor(threshold)))
    hard = losses >= limit
    return losses[hard].mean()


def dense_energy(
    probabilities: Tensor,
    images: NDArray[np.uint8],
    inside: Tensor,
    *,
    sigma_rgb: float = 15.0,
    sigma_xy: float = 100.0,
    scale: float = 0.5,
) -> Tensor:
    """Return the relaxed energy of a dense CRF, up to a constant: low where similar pixels have similar labels.

    Tang, Perazzi, Djelouah, Ben Ayed, Schroers, Boykov, "On Regularized Losses for Weakly-supervised CNN
    Segmentation", ECCV 2018, https://arxiv.org/abs/1803.09569: -sum_c S_c' W S_c / B, with W the Gaussian of colours
    and positions, filtered on the permutohedral lattice. It is a sum over pixels: weights are near 1e-7.

    Args:
        probabilities: Float (B, C, h, w).
        images: uint8 (B, h, w, 3) RGB.
        inside: Bool (B, h, w), False on padding, which does not count.
        sigma_rgb: Standard deviation in grey levels.
        sigma_xy: Standard deviation in pixels of the given size.
        scale: Factor at which the energy is computed.

    Returns:
        A scalar on the device of the probabilities.
    """
    size = [max(1, round(side * scale)) for side in probabilities.shape[2:]]
    small = F.interpolate(probabilities.float(), size=size, mode="bilinear", align_corners=False)
    colours = F.interpolate(torch.from_numpy(images).permute(0, 3, 1, 2).float(), size=size)
    weights = F.interpolate(inside[:, None].float(), size=size)
    energy: Tensor = _Energy.apply(small * weights, colours, sigma_rgb, sigma_xy * scale)
    return energy


class _Energy(torch.autograd.Function):
    """-sum_c S_c' W S_c / B, whose gradient is -2 W S / B: one filter pass for both."""

    @staticmethod
    def forward(ctx: Any, shares: Tensor, colours: Tensor, sigma_rgb: float, sigma_xy: float) -> Tensor:
        plain = shares.detach().cpu().numpy()
        filtered = np.stack(
            [_filter(share, colour.numpy(), sigma_rgb, sigma_xy) for share, colour in zip(plain, colours, strict=True)]
        )
        ctx.filtered = torch.from_numpy(filtered).to(shares)
        energy: Tensor = -(shares.detach() * ctx.filtered).sum() / len(shares)
        return energy

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return -2 * gradient * ctx.filtered / len(ctx.filtered), None, None, None


def _filter(
    share: NDArray[np.float32], colours: NDArray[np.float32], sigma_rgb: float, sigma_xy: float
) -> NDArray[np.float32]:
    """Apply the bilateral Gaussian, not normalised: float32 (C, h, w) with colours (3, h, w) to (C, h, w)."""
    classes, height, width = share.shape
    positions = np.stack(np.meshgrid(np.arange(width), np.arange(height))) / sigma_xy
    features = np.concatenate([positions, colours / sigma_rgb]).reshape(5, -1).T
    lattice = build_lattice(np.ascontiguousarray(features, dtype=np.float32))
    values = np.ascontiguousarray(share.reshape(classes, -1).T)
    return lattice.filter(values).T.reshape(share.shape) / np.float32(_LATTICE_GAIN)
