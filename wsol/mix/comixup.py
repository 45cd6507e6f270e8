"""Co-Mixup: the salient regions of a whole batch, composed so that the mixed images differ from each other.

Kim, Choo, Jeong, Song, "Co-Mixup: Saliency Guided Joint Mixup with Supermodular Diversity", ICLR 2021,
https://arxiv.org/abs/2102.03065. Every cell of every mixed image gets a label z: one input, or half of each of two. The
cost, over a part of n inputs and n outputs with P cells each: the saliency that is lost, -s_i; beta / 2P |z_p - z_q|^2
between neighbours; the prior -eta / P log alpha_i, alpha ~ Dirichlet; and for diversity 2 gamma / P (A c)_i where (A
c)_i exceeds tau P, with c_i the cells of input i in the other outputs and A = (1 - omega) I + omega D, D the distances
between the inputs' salient peaks. Outputs are improved in turn, the supermodular term linearized at
the other ones, each by graph cuts (alpha-beta swaps). Halves are offered from the second round on, among an output's
three most frequent inputs. Before the last round, outputs with the same inputs are pushed apart.

Written from these formulas as the authors' code has them, and not compared with its results. Labels are the shares of
the pixels of all inputs of an output. A mixed image stands at the place of an input that it shows much of;
`y_partner` is the mean label of all its other inputs, `partner` the one of these with the largest share, itself where
there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from wsol.errors import ConfigError
from wsol.mix import MIXES
from wsol.mix._blend import tensor_like
from wsol.mix._salient import SalientMix, with_clean
from wsol.mix.base import Context, Draws, Family, Mixed, check_options

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[np.float64]
SCALE = 10_000_000
"""Costs are rounded to integers of this fraction."""
HALF_BONUS = 5e-4
"""By how much a half and half cell is cheaper than the mean of its two inputs."""


@MIXES.register("comixup")
@dataclass(frozen=True, kw_only=True)
class CoMixup(SalientMix):
    """Salient regions of many images at once."""

    family: ClassVar[Family] = "cut"
    paper: ClassVar[str] = "Kim et al., ICLR 2021"
    cost: ClassVar[str] = "1 fwd + 2 bwd + graph cuts on the CPU"

    clean: float = 1.0
    """Weight of the loss of the clean images beside that of the mixed ones; it comes with the pass for the saliency."""
    grid: int = 4
    """Cells along a side."""
    part: int = 20
    """Images that are mixed with each other; a batch is cut into equal parts of at most this size."""
    beta: float = 0.32
    """Price of neighbours with different labels."""
    gamma: float = 1.0
    """Price of inputs that other outputs show as well."""
    eta: float = 0.05
    """Weight of the prior."""
    alpha: float = 2.0
    """The prior is drawn from Dirichlet(alpha, ..., alpha)."""
    omega: float = 0.001
    """Weight of the distances between salient peaks."""
    tau: float = 0.83
    """Share of an output's cells up to which an input costs nothing elsewhere."""
    rounds: int = 4
    """Times that each output is improved."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options("comixup", alpha=self.alpha, prob=1.0)
        if min(self.grid, self.part, self.rounds) < 1 or min(self.beta, self.gamma, self.eta, self.omega, self.tau) < 0:
            raise ConfigError("grid, part and rounds start at 1, weights at 0", where="comixup")

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw, for each part, `prior` (tuple of float (n,)) and `start` (tuple of int64 (n, grid, grid))."""
        counts = [len(part) for part in np.array_split(np.arange(len(x)), -(-len(x) // self.part))]
        return {
            "prior": tuple(generator.dirichlet(np.full(n, self.alpha)) for n in counts),
            "start": tuple(generator.integers(n, size=(n, self.grid, self.grid)) for n in counts),
        }

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Look at the clean images, then compose; see `MixStrategy.mix`."""
        import torch
        from torch.nn import functional

        from wsol.mix._providers import require

        context = require(context, name="comixup")
        clean, clean_loss = self.look(context, x, y)
        peaks = salient_peaks(clean)
        cells = functional.adaptive_avg_pool2d(clean[:, None], self.grid)[:, 0].double()
        cells = cells / cells.sum((1, 2), keepdim=True).clamp_min(1e-30)
        images, shares, masks, begin = [], y.new_zeros(len(x), len(x)), [], 0
        for prior, start in zip(draws["prior"], draws["start"], strict=True):
            here = slice(begin, begin + len(start))
            labels = self.compose(cells[here].cpu().numpy(), peaks[here].cpu().numpy(), prior, start)
            labels = labels[own_places(labels.mean((1, 2)))]
            shown = functional.interpolate(tensor_like(labels, x).permute(0, 3, 1, 2), size=x.shape[2:])
            images.append(torch.einsum("onhw,nchw->ochw", shown, x[here]))
            shares[here, here] = shown.mean((2, 3)).to(y)
            masks.append(shown.diagonal().permute(2, 0, 1)[:, None].to(y))
            begin = here.stop
        return with_clean(gather(torch.cat(images), y, shares, torch.cat(masks)), clean_loss)

    def compose(self, saliency: Array, peaks: Array, prior: Array, start: NDArray[np.int64]) -> Array:
        """Return the labels of n outputs.

        Args:
            saliency: (n, g, g), summing to 1 an input.
            peaks: (n, 2), where each input is most salient, in pixels.
            prior: (n,), summing to 1.
            start: int64 (n, g, g), inputs to start from.

        Returns:
            (n, g, g, n): how much of each input a cell of an output shows, summing to 1.
        """
        count, cells = len(saliency), self.grid**2
        costs = (-saliency - self.eta / cells * np.log(prior + 1e-8)[:, None, None]).transpose(1, 2, 0)
        distances = np.abs(peaks[:, None] - peaks[None]).sum(-1)
        near = (1 - self.omega) * np.eye(count) + self.omega * count * distances / max(distances.sum(), 1e-8)
        labels, apart = np.eye(count)[start], np.zeros((count, count))
        for step in range(self.rounds):
            before = labels.copy()
            for at in range(count):
                others = near @ (labels.sum((0, 1, 2)) - labels[at].sum((0, 1)))
                penalty = 2 * self.gamma / cells * np.where(others > self.tau * cells, others, 0.0)
                labels[at] = self.improve(costs + penalty + self.gamma / cells * apart[at], labels[at], halves=step > 0)
            if step == self.rounds - 2:
                apart = push_apart(labels.sum((1, 2)) > 0)
            elif step > 0 and np.array_equal(before, labels):
                break
        return labels

    def improve(self, costs: Array, labels: Array, *, halves: bool) -> Array:
        """Return better labels (g, g, n) of one output for costs (g, g, n) of the inputs."""
        from wsol.mix._graph_cut import swap

        words = np.eye(costs.shape[2])
        if halves:
            counts = labels.sum((0, 1))
            top = [int(at) for at in np.argsort(-counts, kind="stable")[:3] if counts[at] > 0]
            pairs = [(a, b) for position, a in enumerate(top) for b in top[position + 1 :]]
            words = np.concatenate([words, *((words[a] + words[b])[None] / 2 for a, b in pairs)])
        unary = costs @ words.T
        unary[..., costs.shape[2] :] -= HALF_BONUS
        unary = np.rint((unary - unary.min()) * SCALE).astype(np.int64)
        # |z_p - z_q|^2 / 2 is a multiple of 1/4.
        price = np.rint(2 * np.square(words[:, None] - words[None]).sum(-1)).astype(np.int64)
        weight = round(self.beta / self.grid**2 * SCALE / 4)
        best: Array = words[swap(unary, price, weight, unary.argmin(-1))]
        return best


def salient_peaks(saliency: Tensor) -> Tensor:
    """Return the (row, column) of the most salient window of 8 pixels' side in maps (B, H, W): float64 (B, 2)."""
    import torch
    from torch.nn import functional

    windows = functional.avg_pool2d(saliency[:, None], min(8, *saliency.shape[1:]), stride=1)
    best = windows.flatten(1).argmax(1)
    return torch.stack([best // windows.shape[3], best % windows.shape[3]], 1).double()


def push_apart(used: NDArray[np.bool_]) -> Array:
    """Return 1 where an output (row) must pay for an input (column), because another output uses the same inputs.

    Args:
        used: (n, n), which inputs each output shows. Of two outputs with the same set of several inputs, one pays for
            the first of them and the other for the second.
    """
    result = np.zeros(used.shape)
    for at, row in enumerate(used):
        inputs = np.flatnonzero(row)
        if len(inputs) > 1:
            twins = at + 1 + np.flatnonzero((used[at + 1 :] == row).all(1))
            result[twins, inputs[1]] = 1.0
            if len(twins):
                result[at, inputs[0]] = 1.0
    return result


def own_places(shares: Array) -> NDArray[np.int64]:
    """Return which output goes to the place of each input, greedily by the largest share (n outputs, n inputs)."""
    order, free = np.zeros(len(shares), dtype=np.int64), shares.copy()
    for _ in shares:
        output, place = np.unravel_index(free.argmax(), free.shape)
        order[place] = output
        free[output], free[:, place] = -1.0, -1.0
    return order


def gather(images: Tensor, y: Tensor, shares: Tensor, own_mask: Tensor) -> Mixed:
    """Return the record of images composed of many.

    Args:
        images: (B, C, H, W).
        y: Float (B, K).
        shares: (B, B), how much of each input (column) an image (row) shows, rows summing to 1.
        own_mask: (B, 1, H, W), share of the input that stands at the same place.
    """
    import torch

    weight, rest = shares.diagonal(), shares - shares.diag().diag()
    total = rest.sum(1)
    partner = rest.argmax(1).where(total > 0, torch.arange(len(y), device=y.device))
    y_partner = (rest @ y / total[:, None]).where(total[:, None] > 0, y)
    return Mixed(
        images=images,
        targets=shares @ y,
        y_own=y,
        y_partner=y_partner,
        partner=partner.cpu().numpy(),
        own_weight=weight,
        own_mask=own_mask,
    )
