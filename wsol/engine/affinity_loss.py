"""Losses of AffinityNet and IRNet over pairs of near pixels with certain labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wsol.models.pixel_pairs import Offsets, shifted
from wsol.schema import IGNORE

_TINY = 1e-5  # of both papers' code


class Pairs(NamedTuple):
    """Which pairs of positions are of one class, or of two; each float (B, n, h, w) of 0 and 1.

    Attributes:
        background: Both are background.
        foreground: Both are of one class.
        different: They are of different classes, or one is background.
    """

    background: Tensor
    foreground: Tensor
    different: Tensor


def pair_labels(labels: Tensor, offsets: Offsets) -> Pairs:
    """Compare the labels of all pairs; pairs with an uncertain or outside position are in none of the three.

    Args:
        labels: uint8 (B, h, w); 255 is uncertain.
        offsets: int (n, 2).
    """
    here = labels[:, None].float()
    there = torch.cat(list(shifted(here, offsets, fill=IGNORE)), dim=1)
    certain, equal, background = (here != IGNORE) & (there != IGNORE), here == there, here == 0
    return Pairs(*(mask.float() for mask in (equal & background, certain & equal & ~background, certain & ~equal)))


def psa_loss(affinity: Tensor, pairs: Pairs) -> Tensor:
    """Return a quarter of the cross-entropy of background and of foreground pairs, plus half of that of different ones.

    Args:
        affinity: (B, n, h, w) in [0, 1].
        pairs: From `pair_labels`.
    """
    same, other = -torch.log(affinity + _TINY), -torch.log(1 + _TINY - affinity)
    return _mean(same, pairs.background) / 4 + _mean(same, pairs.foreground) / 4 + _mean(other, pairs.different) / 2


def irn_loss(affinity: Tensor, difference: Tensor, offsets: Offsets, pairs: Pairs) -> Tensor:
    """Return the loss of PSA on the affinities plus half of the two losses on the displacements.

    Displacements of a foreground pair must differ by its offset (they lead to one centroid), and those of a background
    pair not at all (which has none); L1, averaged over both components.

    Args:
        affinity: (B, n, h, w) in [0, 1].
        difference: (B, 2, n, h, w), displacement of the first position minus that of the second.
        offsets: int (n, 2).
        pairs: From `pair_labels`.
    """
    target = torch.from_numpy(offsets).to(difference).T[None, :, :, None, None]
    foreground = _mean((difference - target).abs().mean(dim=1), pairs.foreground)
    background = _mean(difference.abs().mean(dim=1), pairs.background)
    return psa_loss(affinity, pairs) + (foreground + background) / 2


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / (mask.sum() + _TINY)
