"""TransMix: weigh the labels of a mixed image by what the class token attends to.

Chen, Sun, He, Torr, Yuille, Bai, "TransMix: Attend to Mix for Vision Transformers", CVPR 2022,
https://arxiv.org/abs/2111.09833. a: attention of the class token to the patches in the last block of the mixed image,
mean over heads, without gradient; M: the partner's pixels, down-sampled (nearest) to the patches.
w = (area(M) + sum(M a) / sum(a)) / 2 is the partner's weight: the mean of both measures, as in the authors' code. For
models that pool, a is the attention of the mean patch. Images mixed as a whole (mixup) keep their labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsol.errors import ConfigError
from wsol.mix import MIXES
from wsol.mix._compose import Over
from wsol.mix.base import Family, Mixed, Need, Output

if TYPE_CHECKING:
    from torch import Tensor

    from wsol.models.classifier import Classifier


@MIXES.register("transmix")
@dataclass(frozen=True, kw_only=True)
class TransMix(Over):
    """Labels by attention, over any strategy that knows whose each pixel is."""

    family: ClassVar[Family] = "attention"
    paper: ClassVar[str] = "Chen et al., CVPR 2022"
    needs: ClassVar[frozenset[Need]] = frozenset({"attention"})

    def check(self, classifier: Classifier) -> None:
        """Refuse models without attention between all patches, and inner strategies with labels of their own."""
        from wsol.mix._tokens import check_attention, require_plain

        require_plain(self.strategy, name="transmix")
        check_attention(classifier)
        super().check(classifier)

    def relabel(self, mixed: Mixed, output: Output) -> Tensor:
        """Return targets (B, K) weighed by area and attention."""
        if mixed.own_mask is None:
            hint = "put it over cutmix"
            raise ConfigError("the inner strategy does not say whose each pixel is", where="mix 'transmix'", hint=hint)
        if output.attention is None or output.grid is None:
            raise ValueError("output has no attention")
        own = attended_share(mixed.own_mask, output.attention, output.grid)
        weight = ((mixed.own_weight + own) / 2)[:, None]
        return mixed.y_own * weight + mixed.y_partner * (1 - weight)


def attended_share(own_mask: Tensor, attention: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the share (B,) of the attention that goes to the own image.

    Args:
        own_mask: (B, 1, H, W) in [0, 1].
        attention: (B, N), not negative.
        grid: (rows, columns) of the N patches.
    """
    from wsol.mix._tokens import at_cells

    cells = at_cells(own_mask, grid).flatten(1).to(attention)
    return (cells * attention).sum(1) / attention.sum(1).clamp_min(1e-12)
