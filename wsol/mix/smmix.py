"""SMMix: paste the window that one image attends to most onto the one that the other attends to least.

Chen, Lin, Lin, Zhang, Chao, Ji, "SMMix: Self-Motivated Image Mixing for Vision Transformers", ICCV 2023,
https://arxiv.org/abs/2212.12977. The network looks at the clean images in evaluation mode: a is what each patch
receives from all patches in the last block, mean over heads. One side a batch, from a quarter to three quarters of the
grid; the window of the partner with the largest sum of a replaces the own window with the smallest. lambda = 1 - share
of the window. The loss has three parts:

    CE(p, lambda y_i + (1 - lambda) y_j) + [CE(h(own patches), y_i) + CE(h(pasted patches), y_j)] / 2
        + KL(softmax(lambda z_i + (1 - lambda) z_j) || p)

with h a linear head of its own over mean final patch tokens, and z the logits of the clean images. With several labels
an image, KL is between Bernoulli distributions, mean over classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from wsol.errors import ConfigError
from wsol.mix import MIXES
from wsol.mix.base import Context, Draws, Family, Mixed, MixStrategy, Need, Output, Partner, draw_partner

if TYPE_CHECKING:
    from torch import Tensor, nn

    from wsol.models.classifier import Classifier


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class WindowMixed(Mixed):
    """A mixed batch and what the network made of the clean images.

    Attributes:
        own_patches: Bool (B, N), patches of the own image.
        clean_logits: (B, K) of the clean images, without graph.
    """

    own_patches: Tensor
    clean_logits: Tensor


@MIXES.register("smmix")
@dataclass(frozen=True)
class SMMix(MixStrategy):
    """The most attended window of another image."""

    family: ClassVar[Family] = "attention"
    paper: ClassVar[str] = "Chen et al., ICCV 2023"
    cost: ClassVar[str] = "1 fwd"
    needs: ClassVar[frozenset[Need]] = frozenset({"tokens"})

    min_side: float = 0.25
    """Smallest side of the window, as a share of the grid's."""
    max_side: float = 0.75
    """Largest side."""
    partner: Partner = "flip"
    """perm: a random permutation of the batch; flip: the batch in reverse, as the authors do."""

    def __post_init__(self) -> None:
        if not 0 < self.min_side <= self.max_side <= 1:
            raise ConfigError(f"sides must be in (0, 1], got {self.min_side} to {self.max_side}", where="smmix")

    def check(self, classifier: Classifier) -> None:
        """Refuse models without attention between all patches."""
        from wsol.mix._tokens import check_attention

        check_attention(classifier)

    def own(self, classifier: Classifier) -> nn.Module:
        """Return the head over patches of one image; it is not needed after training."""
        from torch import nn

        return nn.Linear(classifier.module.num_features, classifier.num_classes).to(classifier.device)

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `side` (float, position among the sides) and `partner` (int64 (B,))."""
        side = float(generator.random())
        return {"side": side, "partner": draw_partner(len(x), generator, partner=self.partner)}

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Look at the clean images and paste windows; see `MixStrategy.mix`."""
        from wsol.mix._providers import require
        from wsol.mix._tokens import clean_attention, to_pixels

        context, partner, size = require(context, name="smmix"), draws["partner"], (x.shape[2], x.shape[3])
        rows, columns = context.classifier.grid(*size)
        if size[0] % rows or size[1] % columns:
            what = f"windows of whole patches need an image that they divide, got {size[0]}x{size[1]}"
            raise ConfigError(what, where="mix 'smmix'", hint="choose another --img-size")
        logits, attention = clean_attention(context, x, rows="patches")
        window = self._side(rows, draws["side"]), self._side(columns, draws["side"])
        images, own = paste_windows(x, attention.reshape(-1, rows, columns), partner, window)
        weight, y_partner = 1 - window[0] * window[1] / (rows * columns), y[partner]
        return WindowMixed(
            images=images,
            targets=y * weight + y_partner * (1 - weight),
            y_own=y,
            y_partner=y_partner,
            partner=partner,
            own_weight=y.new_full((len(x),), weight),
            own_mask=to_pixels(own.to(y), size)[:, None],
            own_patches=own.flatten(1),
            clean_logits=logits,
        )

    def loss(self, mixed: Mixed, output: Output, context: Context) -> Tensor:
        """Return the three parts of the loss together."""
        from wsol.mix._divergence import divergence

        windows, head = cast(WindowMixed, mixed), cast("nn.Module", context.own)
        if output.tokens is None:
            raise ValueError("output has no tokens")
        own, pasted = region_means(output.tokens.float(), windows.own_patches)
        fine = context.criterion(head(own), mixed.y_own) + context.criterion(head(pasted), mixed.y_partner)
        weight = mixed.own_weight[:, None]
        clean = windows.clean_logits * weight + windows.clean_logits[mixed.partner] * (1 - weight)
        kept = divergence(output.logits, clean, multi_label=context.multi_label)
        return context.criterion(output.logits, mixed.targets) + fine / 2 + kept

    def _side(self, cells: int, position: float) -> int:
        low, high = max(1, int(self.min_side * cells)), max(1, int(self.max_side * cells))
        return low + int(position * (high - low + 1))


def paste_windows(x: Tensor, attention: Tensor, partner: np.ndarray, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Paste each partner's most attended window onto the own least attended one.

    Args:
        x: (B, C, H, W), sides that the grid divides.
        attention: (B, rows, columns).
        partner: int64 (B,).
        window: (rows, columns) of the window.

    Returns:
        Images (B, C, H, W), and bool (B, rows, columns) of the patches that are left of the own image.
    """
    import torch
    import torch.nn.functional as F

    sums = F.avg_pool2d(attention[:, None], window, 1)
    across, sums = sums.shape[3], sums.flatten(1)
    least, most = sums.argmin(1).tolist(), sums.argmax(1).tolist()
    high, wide = x.shape[2] // attention.shape[1], x.shape[3] // attention.shape[2]
    images, own = x.clone(), torch.ones_like(attention, dtype=torch.bool)
    for at, (other, to) in enumerate(zip(partner.tolist(), least, strict=True)):
        row, column = divmod(to, across)
        from_row, from_column = divmod(most[other], across)
        images[at, :, row * high : (row + window[0]) * high, column * wide : (column + window[1]) * wide] = x[
            other,
            :,
            from_row * high : (from_row + window[0]) * high,
            from_column * wide : (from_column + window[1]) * wide,
        ]
        own[at, row : row + window[0], column : column + window[1]] = False
    return images, own


def region_means(tokens: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean token (B, D) of the own patches and of the others, from tokens (B, N, D) and bool (B, N)."""
    weights = own.to(tokens)[..., None]
    inside, all_of_them, count = (tokens * weights).sum(1), tokens.sum(1), weights.sum(1)
    return inside / count.clamp_min(1), (all_of_them - inside) / (own.shape[1] - count).clamp_min(1)
