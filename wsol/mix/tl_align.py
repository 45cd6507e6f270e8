"""TL-Align: carry the labels of the tokens through every attention, as far as the class token.

Xiao, Zheng, Zhu, Zhou, Lu, "Token-Label Alignment for Vision Transformers", ICCV 2023,
https://arxiv.org/abs/2210.06455. A box of whole tokens comes from the partner (CutMix on the patch grid). Every token
starts with the labels of its image, the class token with the labels mixed by area; each block takes L to (A L + L) / 2
with A the attention, mean over heads, without gradient. The target is L of the class token after the last block; for
models that pool, the mean over the patches.

The rows of A sum to 1 and every L is a mixture of the labels of the two images, so one number a token, the share of the
own image, carries labels of any number of classes exactly. In Swin transformers, which the paper describes and the
authors' code leaves out, the shares go through windows, shifts and merging (mean of 2 x 2) as the tokens do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from wsol.mix import MIXES
from wsol.mix.base import (
    Context,
    Draws,
    Family,
    Mixed,
    MixStrategy,
    Output,
    Partner,
    check_labels,
    check_options,
    draw_partner,
)
from wsol.mix.cutmix import cut_box

if TYPE_CHECKING:
    from torch import Tensor

    from wsol.models.classifier import Classifier


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AlignedOutput(Output):
    """Logits and what the network looked at.

    Attributes:
        own_share: Float (B,), share of the own image in the label after the last block.
    """

    own_share: Tensor


@MIXES.register("tl_align")
@dataclass(frozen=True)
class TLAlign(MixStrategy):
    """CutMix of tokens, with labels carried through the attention."""

    family: ClassVar[Family] = "attention"
    paper: ClassVar[str] = "Xiao et al., ICCV 2023"

    alpha: float = 1.0
    """lambda ~ Beta(alpha, alpha)."""
    prob: float = 1.0
    """Probability of mixing a batch."""
    partner: Partner = "flip"
    """perm: a random permutation of the batch; flip: the batch in reverse, as the authors do."""

    def __post_init__(self) -> None:
        check_options("tl_align", alpha=self.alpha, prob=self.prob)

    def check(self, classifier: Classifier) -> None:
        """Refuse models that are neither a plain vision transformer nor a Swin transformer."""
        from wsol.mix._label_path import check_path

        check_path(classifier)

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `lam` (float, before clipping), `centre` ((row, column) as shares of the sides) and `partner`."""
        mixes = generator.random() < self.prob
        lam = float(generator.beta(self.alpha, self.alpha))
        centre = float(generator.random()), float(generator.random())
        return {
            "lam": lam if mixes else 1.0,
            "centre": centre,
            "partner": draw_partner(len(x), generator, partner=self.partner),
        }

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Paste the tokens of each partner; see `MixStrategy.mix`."""
        import torch

        from wsol.mix._label_path import first_grid
        from wsol.mix._providers import require
        from wsol.mix._tokens import to_pixels

        check_labels(y)
        partner, size = draws["partner"], (x.shape[2], x.shape[3])
        rows, columns = first_grid(require(context, name="tl_align").classifier, size)
        centre = int(draws["centre"][0] * rows), int(draws["centre"][1] * columns)
        top, left, bottom, right = cut_box((rows, columns), draws["lam"], centre)
        cells = y.new_ones(rows, columns)
        cells[top:bottom, left:right] = 0
        mask = to_pixels(cells, size).expand(len(x), 1, *size)
        weight, y_partner = cells.mean(), y[partner]
        return Mixed(
            images=torch.where(mask.bool(), x, x[partner]),
            targets=y * weight + y_partner * (1 - weight),
            y_own=y,
            y_partner=y_partner,
            partner=partner,
            own_weight=weight.expand(len(x)),
            own_mask=mask,
        )

    def forward(self, mixed: Mixed, context: Context) -> Output:
        """Run the network and carry the shares of the own image along."""
        from wsol.mix._label_path import carried

        logits, share = carried(context, mixed)
        return AlignedOutput(logits=logits, own_share=share)

    def relabel(self, mixed: Mixed, output: Output) -> Tensor:
        """Return the labels that came out of the last block, (B, K)."""
        share = cast(AlignedOutput, output).own_share[:, None]
        return mixed.y_own * share + mixed.y_partner * (1 - share)
