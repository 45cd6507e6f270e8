"""FYI: train on each image and its mirror image in one batch.

Son, Oh, Baek, Ham, "FYI: Flip Your Images for Dataset Distillation", ECCV 2024, https://arxiv.org/abs/2407.08113. The
batch S becomes [S, hflip(S)], its labels [y, y]. The paper does so to synthetic images, there for data set
distillation; here it is a step on each image and its mirror image, of which the paper measures nothing. A batch takes
twice the time and memory, and flipping at random before (`--hflip`) changes nothing but the order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsol.mix import MIXES
from wsol.mix.base import Context, Draws, Family, Mixed
from wsol.mix.none import Unmixed

if TYPE_CHECKING:
    from torch import Tensor


@MIXES.register("fyi")
@dataclass(frozen=True)
class FYI(Unmixed):
    """Every image beside its mirror image, each its own partner."""

    family: ClassVar[Family] = "other"
    paper: ClassVar[str] = "Son et al., ECCV 2024"
    cost: ClassVar[str] = "1 fwd + 1 bwd"
    growth: ClassVar[int] = 2

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Return 2B images, the mirror images behind the B of the batch; see `MixStrategy.mix`."""
        import torch

        return super().mix(torch.cat([x, x.flip(3)]), torch.cat([y, y]), draws, context)
