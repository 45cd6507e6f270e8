"""CutMix: paste a box of another image and mix the labels by area.

Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019,
https://arxiv.org/abs/1905.04899. lambda ~ Beta(alpha, alpha); a box of sides sqrt(1 - lambda) times the image's, with
its centre uniform in the image, comes from the same place of the partner; the label weight is the area that is left
after clipping the box at the border. The paper draws one box a batch, timm also one a pair or one an image, and boxes
between two sizes that lie inside the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from wsol.mix import MIXES
from wsol.mix._blend import tensor_like
from wsol.mix._boxes import Box, BoxRule, Mode, area, check_range, clip_box, draw_lam, spread
from wsol.mix.base import Context, Draws, Family, Mixed, MixStrategy, Partner, check_options, draw_partner

if TYPE_CHECKING:
    from torch import Tensor


@MIXES.register("cutmix")
@dataclass(frozen=True)
class CutMix(MixStrategy):
    """A box of another image."""

    family: ClassVar[Family] = "cut"
    paper: ClassVar[str] = "Yun et al., ICCV 2019"

    alpha: float = 1.0
    """lambda ~ Beta(alpha, alpha)."""
    prob: float = 1.0
    """Probability of mixing a batch (a pair, an image): 1.0 on ImageNet and CUB, 0.5 on CIFAR."""
    partner: Partner = "perm"
    """perm: a random permutation of the batch; flip: the batch in reverse, as timm does."""
    box: BoxRule = "clovaai"
    """clovaai: both halves of a side rounded down (the paper's code); timm: odd sides kept."""
    mode: Mode = "batch"
    """One box a batch, a pair (the i-th image from the front and the back, meant for partner flip) or an image."""
    minmax: tuple[float, float] | None = None
    """Draw each side of the box uniformly between these shares of the image's, without lambda (timm)."""

    def __post_init__(self) -> None:
        check_options("cutmix", alpha=self.alpha, prob=self.prob)
        if self.minmax is not None:
            check_range("cutmix", "minmax", self.minmax, low=0, high=1)

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `lam` (before clipping), `centre` (row, column) and `partner` (int64 (B,)).

        Mode batch draws a float and a pair of integers, the others (B,) and (B, 2). With `minmax` a row
        (top, left, bottom, right) of `box`, (1, 4) or (B, 4), takes the place of the centre, and `lam` tells only
        whether it is pasted.
        """
        count = 1 if self.mode == "batch" else len(x)
        lam = draw_lam(len(x), generator, alpha=self.alpha, prob=self.prob, mode=self.mode)
        sides = np.array(x.shape[2:])
        place: dict[str, object]
        if self.minmax is None:
            centre = generator.integers(sides, size=(count, 2))
            place = {"centre": tuple(centre[0].tolist()) if self.mode == "batch" else self._share(centre)}
        else:
            low, high = (sides * limit for limit in self.minmax)
            cut = generator.integers(low.astype(int), np.maximum(high, low + 1).astype(int), size=(count, 2))
            corner = generator.integers(sides - cut + 1)
            place = {"box": self._share(np.concatenate([corner, corner + cut], axis=1))}
        return {"lam": lam, **place, "partner": draw_partner(len(x), generator, partner=self.partner)}

    def _share(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        return values if self.mode == "batch" else spread(values, mode=self.mode)

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Paste the box of each partner; see `MixStrategy.mix`."""
        return paste(x, y, self._boxes((x.shape[2], x.shape[3]), draws), draws["partner"])

    def _boxes(self, size: tuple[int, int], draws: Draws) -> list[Box]:
        shares = np.atleast_1d(draws["lam"])
        if self.minmax is not None:
            found = np.broadcast_to(draws["box"], (len(shares), 4)) * (shares < 1.0)[:, None]
            return [(top, left, bottom, right) for top, left, bottom, right in found.tolist()]
        centres = np.reshape(draws["centre"], (-1, 2)).tolist()
        return [
            cut_box(size, lam, (row, column), rule=self.box)
            for lam, (row, column) in zip(shares.tolist(), centres, strict=True)
        ]


def paste(x: Tensor, y: Tensor, boxes: list[Box], partner: NDArray[np.int64]) -> Mixed:
    """Paste boxes of the partners at the same place and mix the labels by area.

    Args:
        x: (B, C, H, W); not changed.
        y: Float (B, K).
        boxes: One for the batch, or one an image.
        partner: int64 (B,).
    """
    count, size = len(x), (x.shape[2], x.shape[3])
    images, mask = x.clone(), y.new_ones((len(boxes), 1, *size))
    for at, (top, left, bottom, right) in enumerate(boxes):
        rows = slice(None) if len(boxes) == 1 else slice(at, at + 1)
        images[rows, :, top:bottom, left:right] = x[partner[rows], :, top:bottom, left:right]
        mask[at, :, top:bottom, left:right] = 0.0
    weight = tensor_like(np.array([1.0 - area(box) / (size[0] * size[1]) for box in boxes]), y).expand(count)
    y_partner = y[partner]
    return Mixed(
        images=images,
        targets=y * weight[:, None] + y_partner * (1.0 - weight[:, None]),
        y_own=y,
        y_partner=y_partner,
        partner=partner,
        own_weight=weight,
        own_mask=mask.expand(count, 1, *size),
    )


def cut_box(size: tuple[int, int], lam: float, centre: tuple[int, int], *, rule: BoxRule = "clovaai") -> Box:
    """Return the box to paste, clipped at the border.

    Args:
        size: (H, W) of the image.
        lam: Share of the own image before clipping, in [0, 1].
        centre: (row, column) of the box.
        rule: See `clip_box`.

    Returns:
        top, left, bottom, right, half-open; empty when a side rounds down to nothing.
    """
    ratio = math.sqrt(1.0 - lam)
    return clip_box(size, (int(size[0] * ratio), int(size[1] * ratio)), centre, rule=rule)
