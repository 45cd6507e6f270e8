"""Puzzle Mix: the mask of the most saliency and smoothest borders, and patches moved to where it shows them.

Kim, Choo, Song, "Puzzle Mix: Exploiting Saliency and Local Statistics for Optimal Mixup", ICML 2020,
https://arxiv.org/abs/2009.06962. Saliency: input gradient of the loss in evaluation mode (with `clean`, in training
mode), root mean square over channels, averaged over n x n blocks, summing to 1; n from {2, 4, 8, 16}. Each block takes
a share of the own image from {0, 1/2, 1} (`n_labels`) at the cost of the saliency that is lost, of differences between
neighbouring pixels across the blocks' borders, of neighbours with different shares, and of a binomial prior with mean
lambda ~ Beta(alpha, alpha). Then patches of both images move to where the mask shows them (`transport`). Labels by
share of the blocks.

The authors find the mask by alpha-beta swaps of the library gco; these costs have an exact solution by one minimum
cut, which is used here, after rounding them to integers as the authors do. On sizes that n does not divide, the last
blocks are larger and the pixels beyond the n x n equal ones do not move.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from wsol.errors import ConfigError
from wsol.mix import MIXES
from wsol.mix._blend import blend, tensor_like
from wsol.mix._salient import SalientMix, with_clean
from wsol.mix.base import Context, Draws, Family, Mixed, Partner, check_options, draw_partner

if TYPE_CHECKING:
    from torch import Tensor


@MIXES.register("puzzlemix")
@dataclass(frozen=True, kw_only=True)
class PuzzleMix(SalientMix):
    """The best mask by graph cut, and patches moved into it."""

    family: ClassVar[Family] = "cut"
    paper: ClassVar[str] = "Kim et al., ICML 2020"
    cost: ClassVar[str] = "1 fwd + 1 bwd + graph cuts on the CPU"
    batch_stats: ClassVar[bool] = False

    alpha: float = 1.0
    """lambda ~ Beta(alpha, alpha), mean of the prior, one a batch."""
    beta: float = 1.2
    """Price of neighbours with different shares."""
    gamma: float = 0.5
    """Price of pixel differences across borders, times beta."""
    eta: float = 0.2
    """Weight of the prior."""
    n_labels: int = 3
    """Shares that a block can take."""
    neigh_size: int = 4
    """Pixels are averaged over squares of this side before differences are taken."""
    transport: bool = True
    """Move patches to where the mask shows them."""
    t_eps: float = 0.8
    """Cost of distance in the transport; saliency sums to 1."""
    t_grid: int = 8
    """The patches that move are those of a grid of at least this side."""
    fill: bool = True
    """Cells that no patch moved to show what was there; the authors' code leaves them 0, the mean color."""
    partner: Partner = "perm"
    """perm: a random permutation of the batch; flip: the batch in reverse."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options("puzzlemix", alpha=self.alpha, prob=1.0)
        if min(self.beta, self.gamma, self.eta) < 0:
            values = f"beta {self.beta}, gamma {self.gamma}, eta {self.eta}"
            raise ConfigError(f"weights must not be negative, got {values}", where="puzzlemix")
        if self.n_labels < 2 or self.neigh_size < 1:
            raise ConfigError("n_labels starts at 2, neigh_size at 1", where="puzzlemix")
        if self.t_grid not in (1, 2, 4, 8, 16):
            raise ConfigError(f"t_grid must be 1, 2, 4, 8 or 16, got {self.t_grid}", where="puzzlemix")

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `lam` (float), `blocks` (int, along a side) and `partner` (int64 (B,))."""
        return {
            "lam": float(generator.beta(self.alpha, self.alpha)),
            "blocks": 2 ** int(generator.integers(1, 5)),
            "partner": draw_partner(len(x), generator, partner=self.partner),
        }

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Look at the clean images, then solve the puzzle; see `MixStrategy.mix`."""
        from wsol.mix._providers import require

        context = require(context, name="puzzlemix")
        mean = tensor_like(np.array(context.classifier.mean), x)[:, None, None]
        std = tensor_like(np.array(context.classifier.std), x)[:, None, None]
        saliency, clean_loss = self.look(context, x, y)
        return with_clean(self.puzzle(x, y, draws, saliency, x * std + mean), clean_loss)

    def puzzle(self, x: Tensor, y: Tensor, draws: Draws, saliency: Tensor, pixels: Tensor) -> Mixed:
        """Mix a batch of known saliency.

        Args:
            x: (B, C, H, W).
            y: Float (B, K).
            draws: See `draw`.
            saliency: (B, H, W), not negative, of any scale.
            pixels: (B, C, H, W), the images in [0, 1].
        """
        from wsol.mix._graph_cut import cut_quadratic
        from wsol.mix._transport import complete, transport, transport_plan

        size, partner = (x.shape[2], x.shape[3]), draws["partner"]
        blocks = fit_grid(draws["blocks"], size)
        if blocks < 2:
            return blend(x, y, y.new_ones((1, 1, 1, 1)), partner)
        fine = max(fit_grid(self.t_grid, size), blocks) if self.transport else blocks
        h, w = size[0] // fine, size[1] // fine
        even = np.s_[..., : fine * h, : fine * w]
        costs = self.costs(pixels[even], saliency[even], draws["lam"], blocks, partner)
        labels = np.stack([cut_quadratic(*case) for case in zip(*costs, strict=True)])
        shares = tensor_like(1.0 - labels / (self.n_labels - 1), x)
        shares = shares.repeat_interleave(fine // blocks, 1).repeat_interleave(fine // blocks, 2)
        own, other = x, x[partner]
        if self.transport:
            salient = block_saliency(saliency[even], fine)
            plans = (
                transport_plan(mask, weights, weight=self.t_eps)
                for mask, weights in ((shares, salient), (1.0 - shares, salient[partner]))
            )
            own, other = own.clone(), other.clone()
            for image, plan in zip((own, other), plans, strict=True):
                image[even] = transport(image[even], complete(plan) if self.fill else plan)
        rows, columns = (np.minimum(np.arange(n) // side, fine - 1) for n, side in zip(size, (h, w), strict=True))
        return blend(own, y, shares[:, None, rows][..., columns], partner, other=other)

    def costs(
        self, pixels: Tensor, saliency: Tensor, lam: float, blocks: int, partner: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return what a mask costs, as `cut_quadratic` takes it; label k leaves 1 - k / (n_labels - 1) of the image.

        Args:
            pixels: (B, C, H, W) in [0, 1]; both sides are multiples of `blocks`.
            saliency: (B, H, W).
            lam: Mean of the prior, in [0, 1].
            blocks: Along a side, at least 2.
            partner: int64 (B,).

        Returns:
            Labels (B, n_labels, blocks, blocks), neighbours below (B, blocks - 1, blocks) and to the right
            (B, blocks, blocks - 1).
        """
        beta = self.beta / blocks / 16
        weights = block_saliency(saliency, blocks)
        lost_own, lost_other = weights.clone(), weights[partner]
        neighbours = []
        for axis in (1, 2):
            differences = border_differences(pixels, partner, blocks, self.neigh_size, axis=axis)
            oo, op, po, pp = (beta * self.gamma * difference for difference in differences)
            before = (slice(None),) * axis
            upper, lower = (*before, slice(-1)), (*before, slice(1, None))
            # A pair is paid half by either cell, and the rest when the two differ.
            lost_own[upper] += (pp + po) / 2
            lost_own[lower] += (pp + op) / 2
            lost_other[upper] += (oo + op) / 2
            lost_other[lower] += (oo + po) / 2
            neighbours.append((op + po - oo - pp) / 2 + beta)
        scale, levels = 1000 * blocks**2, np.linspace(0.0, 1.0, self.n_labels)
        prior = self.eta / blocks**2 * log_prior(lam, self.n_labels)
        unary = [
            (1 - level) * _numpy(lost_other).astype(np.float64) + level * _numpy(lost_own) + extra
            for level, extra in zip(levels, prior, strict=True)
        ]
        costs = (scale * np.stack(unary, axis=1)).astype(np.int64)
        down, right = ((scale * _numpy(price.clamp_min(0.0))).astype(np.int64) for price in neighbours)
        return costs, down, right


def fit_grid(side: int, size: tuple[int, int]) -> int:
    """Halve a grid's side until its cells have a pixel at least."""
    while side > min(size):
        side //= 2
    return side


def block_saliency(saliency: Tensor, blocks: int) -> Tensor:
    """Average (B, H, W) over blocks, and let each map sum to 1: (B, blocks, blocks)."""
    from torch.nn import functional

    pooled = functional.adaptive_avg_pool2d(saliency[:, None], blocks)[:, 0]
    return pooled / pooled.sum((1, 2), keepdim=True).clamp_min(1e-30)


def log_prior(lam: float, n_labels: int) -> NDArray[np.float64]:
    """Return -log of the binomial chances of each label: `n_labels - 1` throws, each for the own image with `lam`."""
    top = n_labels - 1
    chances = [comb(top, k) * lam ** (top - k) * (1.0 - lam) ** k for k in range(n_labels)]
    return -np.log(np.array(chances) + 1e-8)


def border_differences(
    pixels: Tensor, partner: NDArray[np.int64], blocks: int, neigh_size: int, *, axis: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean absolute differences across the borders of blocks, for every choice of images on both sides.

    Args:
        pixels: (B, C, H, W).
        partner: int64 (B,).
        blocks: Along a side.
        neigh_size: See `PuzzleMix`; where it does not divide a block, the next smaller number that does.
        axis: 1: between a block and the one below; 2: the one to its right.

    Returns:
        Own before own, own before the partner's, the partner's before own, the partner's before the partner's; each
        (B, blocks - 1, blocks) or (B, blocks, blocks - 1).
    """
    from torch.nn import functional

    sides = [n // blocks for n in pixels.shape[2:]]
    squares = [max(k for k in range(1, min(neigh_size, side) + 1) if side % k == 0) for side in sides]
    pooled = functional.avg_pool2d(pixels, squares)
    k, across = (side // square for side, square in zip(sides, squares, strict=True))
    if axis == 2:
        pooled, k, across = pooled.transpose(2, 3), across, k
    first, second = pooled[:, :, k - 1 : -1 : k], pooled[:, :, k::k]

    def mean(one: Tensor, other: Tensor) -> Tensor:
        result = functional.avg_pool2d((one - other).abs().mean(1), (1, across))
        return result if axis == 1 else result.transpose(1, 2)

    own, mixed, reverse = mean(first, second), mean(first, second[partner]), mean(first[partner], second)
    return own, mixed, reverse, own[partner]


def _numpy(values: Tensor) -> NDArray[np.float32]:
    return values.float().cpu().numpy()
