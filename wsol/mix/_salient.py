"""Strategies that look at the input gradient of the training loss, and may train on the clean images with that pass.

That pass has no dropout and leaves BatchNorm's running statistics alone, so that mixing repeats exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

from wsol.errors import ConfigError
from wsol.mix.base import Context, Mixed, MixStrategy, Output

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class WithClean(Mixed):
    """A mixed batch and the loss of its clean images.

    Attributes:
        clean_loss: Scalar, with the graph of its forward pass.
    """

    clean_loss: Tensor


@dataclass(frozen=True, kw_only=True)
class SalientMix(MixStrategy):
    """A strategy that mixes by saliency: sqrt(mean over channels of the squared input gradient)."""

    batch_stats: ClassVar[bool] = True
    """Whether BatchNorm uses the statistics of the batch for the saliency; it does for the clean loss."""

    clean: float = 0.0
    """Weight of the loss of the clean images beside that of the mixed ones; it comes with the pass for the saliency."""

    def __post_init__(self) -> None:
        if not self.clean >= 0:
            raise ConfigError(f"clean must not be negative, got {self.clean}", where=type(self).__name__)

    def look(self, context: Context, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the saliency, float32 (B, H, W), and the clean loss where it is trained on."""
        from wsol.mix._providers import saliency, saliency_and_loss

        if self.clean > 0:
            return saliency_and_loss(context, x, y)
        return saliency(context, x, y, batch_stats=self.batch_stats), None

    def loss(self, mixed: Mixed, output: Output, context: Context) -> Tensor:
        """Return the loss of the mixed images plus `clean` times that of the clean ones."""
        loss = context.criterion(output.logits, self.relabel(mixed, output))
        return loss + self.clean * mixed.clean_loss if isinstance(mixed, WithClean) else loss


def with_clean(mixed: Mixed, loss: Tensor | None) -> Mixed:
    """Return the same record, carrying the loss of the clean images where there is one."""
    if loss is None:
        return mixed
    return WithClean(**{item.name: getattr(mixed, item.name) for item in fields(Mixed)}, clean_loss=loss)
